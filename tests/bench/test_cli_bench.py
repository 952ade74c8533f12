"""The verb ``bench``: one tiny real run for its structure, and what it says of bad input. No time decides anything here."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from refusion_edge.bench import timing
from refusion_edge.bench.timing import Load
from refusion_edge.cli import make_parser
from refusion_edge.images.io import write_image
from refusion_edge.network.weights import weights_path
from tests.conftest import ROOT, files_below, one_sentence

Cli = Callable[..., tuple[int, str, str]]
SHORT = (
    "--loaded", "--warmup", 1, "--warmup-ms", 0, "--iterations", 3, "--seconds", 0, "--tolerance", 100_000, "--threads", 1,
)  # fmt: skip


@pytest.mark.slow
def test_a_sweep_writes_every_form_and_can_be_compared_with_itself(run_cli: Cli) -> None:
    pytest.importorskip("jinja2", reason="pages need the extra 'eval'")
    what = ("ir_vis", "--precisions", "fp32,fp16", "--sizes", "16x24,24x16", "--backend", "onnxruntime", *SHORT)
    files = ("--json", "b.json", "--csv", "out/b.csv", "--html", "b.html", "--lines", "b.jsonl")
    code, out, err = run_cli("bench", *what, *files)
    assert (code, err) == (0, "")
    document = json.loads(Path("b.json").read_text())
    measured = [(row["identity"]["precision"], row["identity"]["size_hw"]) for row in document["rows"]]
    assert measured == [("fp32", [16, 24]), ("fp16", [16, 24]), ("fp32", [24, 16]), ("fp16", [24, 16])]
    for row in document["rows"]:
        assert row["identity"]["name"] == "ir_vis"
        assert row["identity"]["backend"] == "onnxruntime"
        assert {"capture", "h2d", "d2h"}.isdisjoint(row["stages"])
        assert row["stages"]["end_to_end"]["count"] == 3
        assert row["quality"]["ssim"] > 0.99
        assert row["roofline"]["share"] > 0
    assert re.search(r"ir_vis fp16 24x16 +onnxruntime +\S+ +- +- +- +- ", out)
    assert re.search(r"engine +capture +preprocess +h2d +infer +d2h +postprocess +end_to_end +cpu", out)
    assert "wrote out/b.csv, b.json, b.html" in out
    assert len(Path("b.jsonl").read_text().splitlines()) == 5
    assert "tmp" not in Path("b.json").read_text() + out

    lines = Path("b.jsonl").read_text().splitlines(keepends=True)
    Path("b.jsonl").write_text("".join(lines[:-1]) + lines[-1][:50])
    code, out, err = run_cli("bench", *what, "--lines", "b.jsonl", "--against", "b.json", "--threshold", 1e6)
    assert code == 0
    assert "3 of 4" in err
    assert re.findall(r"(\S+) ok$", out, re.MULTILINE)[:3] == ["1.00x"] * 3
    code, _, err = run_cli("bench", *what, "--lines", "b.jsonl", "--windows", 4)
    assert code == 2
    assert "plan.most_windows 10 there and 4 here" in err
    assert one_sentence(err)

    for row in document["rows"]:
        row["stages"]["end_to_end"]["median_ms"] *= 1e-6
    Path("fast.json").write_text(json.dumps(document))
    code, out, _ = run_cli("bench", *what, "--against", "fast.json")
    assert code == 1
    assert out.count("REGRESSION") == 4


@pytest.mark.parametrize(("loaded", "allowed", "expected"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_baseline_under_load_passes_only_if_it_is_allowed(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch, loaded: bool, allowed: bool, expected: int
) -> None:
    monkeypatch.setattr("refusion_edge.bench.timing.read_load", lambda _clock: Load(0.1, 0.0, 2))
    what = ("ir_vis", "--sizes", "16x24", *SHORT[1:], "--no-limits")
    assert run_cli("bench", *what, "--json", "old.json")[0] == 0
    document = json.loads(Path("old.json").read_text())
    Path("old.json").write_text(json.dumps(document | {"loaded": loaded}))
    words = ("--loaded",) if allowed else ()
    code, _, err = run_cli("bench", *what, *words, "--against", "old.json", "--threshold", 1e6)
    assert code == expected
    assert ("Warning" in err) is loaded


def test_own_images_are_read_for_every_iteration(run_cli: Cli, picture: Callable[..., object]) -> None:
    write_image("a.png", picture(18, 26))
    write_image("b.png", picture(18, 26, 3))
    code, out, _ = run_cli("bench", "ir_vis", "--a", "a.png", "--b", "b.png", *SHORT, "--no-limits", "--json", "-")
    assert code == 0
    (row,) = json.loads(out)["rows"]
    assert row["identity"]["size_hw"] == [18, 26]
    assert row["stages"]["capture"]["median_ms"] > 0
    assert row["roofline"] is None


def test_how_the_image_is_finished_is_part_of_what_is_measured(run_cli: Cli) -> None:
    what = ("ir_vis", "--sizes", "16x24", *SHORT, "--no-limits")
    code, out, _ = run_cli("bench", *what, "--gray", "--range", "fixed", "--json", "gray.json")
    assert code == 0
    assert "ir_vis fp32 16x24 gray fixed" in out
    (row,) = json.loads(Path("gray.json").read_text())["rows"]
    assert (row["identity"]["color"], row["identity"]["output_range"]) == (False, "fixed")
    code, _, err = run_cli("bench", *what, "--gray", "--against", "gray.json")
    assert code == 2
    assert "output_range" in err
    assert one_sentence(err)


@pytest.mark.slow
def test_networks_are_compared(run_cli: Cli) -> None:
    what = ("--sizes", "16x24", *SHORT, "--no-limits", "--json", "-")
    code, out, _ = run_cli("bench", "ir_vis", "--network", "all", *what)
    assert code == 0
    assert [row["identity"]["network"] for row in json.loads(out)["rows"]] == ["refusion", "fast"]
    code, out, _ = run_cli("bench", "ir_vis", "--network", "fast", "--network", "refusion", *what)
    assert [row["identity"]["network"] for row in json.loads(out)["rows"]] == ["fast", "refusion"]
    turns = ("--compare", "ir_vis", "ir_vis", "--network", "fast", "--network", "refusion")
    code, out, _ = run_cli("bench", *turns, *what)
    assert code == 0
    found = json.loads(out)["comparison"]
    assert [found[name]["network"] for name in ("first", "second")] == ["fast", "refusion"]
    code, out, err = run_cli("bench", "--compare", "ir_vis", "ir_vis", "--network", "all", *what)
    assert (code, out, one_sentence(err)) == (2, "", True)


def test_a_file_is_measured_with_its_own_network_only(run_cli: Cli) -> None:
    path = weights_path("ir_vis", "fast")
    words = ("bench", path, "--sizes", "16x24", *SHORT, "--no-limits", "--json", "-")
    code, out, _ = run_cli(*words, "--network", "all")
    assert code == 0
    assert [row["identity"]["network"] for row in json.loads(out)["rows"]] == ["fast"]
    code, _, err = run_cli(*words, "--network", "fast", "--network", "refusion")
    assert (code, one_sentence(err)) == (4, True)


def test_two_engines_in_turns(run_cli: Cli) -> None:
    pytest.importorskip("jinja2", reason="pages need the extra 'eval'")
    code, out, _ = run_cli(
        "bench", "--compare", "ir_vis", "ir_vis", "--sizes", "16x24", *SHORT, "--stages", "infer,cpu", "--html", "c.html"
    )
    assert code == 0
    assert re.search(r"^A \(ir_vis fp32 16x24\).*|3 turns", out)
    assert re.search(r"^infer +\S+ +\S+ +\d", out, re.MULTILINE)
    assert not re.search(r"^preprocess", out, re.MULTILINE)
    assert "Comparison" in Path("c.html").read_text()


@pytest.mark.slow
def test_a_rate_is_held_or_not(run_cli: Cli) -> None:
    # Once a second is easy, a thousand times a second is not: half a millisecond would have to do for eight attentions.
    assert run_cli("bench", "ir_vis", "--sizes", "16x24", *SHORT, "--fps", 1, "--seconds", 2, "--misses", 100)[0] == 0
    code, out, _ = run_cli("bench", "ir_vis", "--sizes", "64x96", *SHORT, "--fps", 1000, "--seconds", 1, "--misses", 0)
    assert code == 1
    assert "does NOT hold 1000 fps" in out
    assert re.search(r"^whole run +\S", out, re.MULTILINE)


def test_a_loaded_machine_is_refused_or_marked(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "read_load", lambda clock: Load(7.1, 1.9, 2))
    code, out, err = run_cli("bench", "ir_vis", "--sizes", "16x24", "--json", "b.json")
    assert (code, out) == (1, "")
    assert "load average of 7.1 and 1.9 of 2 cores" in err
    assert one_sentence(err)
    assert not Path("b.json").exists()
    code, out, _ = run_cli("bench", "ir_vis", "--sizes", "16x24", *SHORT, "--no-limits")
    assert "LOADED MACHINE" in out


@pytest.mark.parametrize(
    ("words", "expected", "hint"),
    [
        ((), 2, "--compare"),
        (("ir_vis", "--compare", "ir_vis", "ir_vis"), 2, "--compare"),
        (("nowhere",), 4, "nowhere"),
        (("ir_vis", "--stages", "infre"), 2, "'infer'"),
        (("ir_vis", "--sizes", "big"), 2, "HEIGHTxWIDTH"),
        (("ir_vis", "--sizes", "dynamic"), 2, "'dynamic'"),
        (("ir_vis", "--precisions", "fp64"), 2, "'fp64'"),
        (("ir_vis", "--backend", "tensorrt"), 3, "tensorrt"),
        (("ir_vis", "--json", "file/x.json"), 4, "file"),
        (("ir_vis", "--html", "."), 4, "."),
        (("ir_vis", "--against", "none.json"), 4, "none.json"),
        (("ir_vis", "--a", "a.png"), 2, "--b"),
        (("ir_vis", "--fps", "0"), 2, "--fps 0"),
        (("--compare", "ir_vis", "medical"), 2, "medical"),
        (("--compare", "ir_vis", "ir_vis", "--sizes", "16x24,32x32"), 2, "'16x24,32x32'"),
        (("ir_vis", "--fps", "30", "--lines", "l"), 2, "--lines"),
        (("ir_vis", "--lines", "file"), 4, "refusion-edge/bench-lines/1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    run_cli: Cli, words: tuple[str, ...], expected: int, hint: str
) -> None:
    Path("file").write_text("in the way")
    code, out, err = run_cli("bench", *words, *SHORT, "--no-limits")
    assert (code, out) == (expected, "")
    assert hint in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert files_below(Path()) == ["file"]


@pytest.mark.parametrize("words", [("--iterations", "0"), ("--seconds", "-1"), ("--seconds", "nan"), ("--tolerance", "x")])
def test_numbers_out_of_range_are_refused(run_cli: Cli, words: tuple[str, ...]) -> None:
    code, _, err = run_cli("bench", "ir_vis", *words)
    assert code == 2
    assert one_sentence(err.replace("; see", ".; see").split(";")[0])


def test_a_folder_that_cannot_be_written_is_refused_first(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write everywhere, so the system answers as it would its owner
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK or bool(Path(path).stat().st_mode & 0o200))
    Path("locked").mkdir(mode=0o500)
    code, _, err = run_cli("bench", "ir_vis", "--csv", "locked/x.csv")
    assert code == 4
    assert one_sentence(err)


def test_commands_of_the_page_are_commands() -> None:
    text = (ROOT / "docs" / "benchmarking.md").read_text()
    commands = re.findall(r"^refusion-edge (bench .*)$", text, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        parsed = make_parser().parse_args(shlex.split(command, comments=True))
        assert bool(parsed.engines) != bool(parsed.compare)
