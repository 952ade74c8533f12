"""No verb replaces a file unless it is told to: one rule, and a table over all outputs of all verbs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from refusion_edge.arrays import Uint8Array
from refusion_edge.cli import make_parser
from refusion_edge.errors import OutputError, UsageError
from refusion_edge.files import is_occupied
from refusion_edge.images.io import write_image
from refusion_edge.network.weights import weights_path
from refusion_edge.rig.file import write_rig
from refusion_edge.stream.fused_stream import fuse_video
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.run.config import read_config
from tests.conftest import one_sentence
from tests.rig.test_rig import RIG
from tests.stream.conftest import camera, frames_of

RunCli = Callable[..., tuple[int, str, str]]
MINE = b"mine"
FILES = ("--ir", camera("ir", live=0, frames=3), "--vis", camera("vis", live=0, frames=3))
STREAM = ("stream", *FILES, "--network", "fast", "--threads", "1")
PAIR = ("--ir", "ir/x.png", "--vis", "vis/x.png")
EVAL = ("eval", "--ir", "ir", "--vis", "vis", "--fused", "vis", "--metrics", "EN", "--jobs", "1")

# Everything that a verb writes, with the words before the name.
TABLE = [
    (("demo", "-o", "."), "montage.png"),
    (("demo", "-o", "."), "fused/medical-ct.png"),
    (("fuse", "ir/x.png", "vis/x.png", "-o"), "fused.png"),
    (("fuse", "ir", "vis", "-o", "."), "x.png"),
    (("fuse", "ir/x.png", "vis/x.png", "-o", "new.png", "--json"), "report.json"),
    ((*STREAM, "-o"), "fused.mp4"),
    ((*STREAM, "-o"), "fused.mkv"),
    ((*STREAM, "-o", "."), "000002.png"),
    ((*STREAM, "-o", "frame_%04i.jpg"), "frame_0001.jpg"),
    ((*STREAM, "-o", "null://", "--json"), "report.json"),
    ((*STREAM, "-o", "null://", "--log-json", "--json"), "report.json"),
    ((*STREAM, "-o", "null://", "--save-config"), "site.yaml"),
    ((*STREAM, "-o", "null://", "--record", "."), "recording.json"),
    ((*STREAM, "-o", "null://", "--record-limit", "1GB", "--record", "."), "recording.json"),
    (("snap", *FILES, "-o", "."), "ir.png"),
    (("snap", *FILES, "-o", "."), "vis.tiff"),
    (("snap", *FILES, "-o", "shots", "--json"), "report.json"),
    *(
        (("align", *way, *option), name)
        for way in (
            ("auto", *PAIR), ("points", "p.csv", *PAIR), ("checkerboard", *PAIR, "--board", "9x6"), ("calibration", "c.yaml"),
        )
        for option, name in ((("-o",), "rig.yaml"), (("--overlay",), "overlay.png"), (("--json",), "report.json"))
    ),
    (("align", "check", "rig.yaml", *PAIR, "--overlay"), "overlay.png"),
    (("align", "check", "rig.yaml", *PAIR, "--json"), "report.json"),
    (("align", "time", "rig.yaml", "--json"), "report.json"),
    *((("bench", "ir_vis", f"--{option}"), f"report.{option}") for option in ("json", "csv", "html")),
    *(
        ((*EVAL, f"--{option}"), "scores.txt")
        for option in ("json", "csv", "html", "latex", "markdown")
    ),
    ((*EVAL, "--shard", "0/1", "--json"), "scores.json"),
    (("eval", "--merge", "shard.json", "--json"), "scores.json"),
    (("export", "--task", "medical", "-o"), "weights.safetensors"),
    (("build", "--json"), "report.json"),
    (("verify", "bundle", "--json"), "report.json"),
    (("inspect", "bundle", "--json"), "report.json"),
    (("doctor", "--json"), "report.json"),
    (("selftest", "--json"), "report.json"),
]  # fmt: skip

# Outputs that are asked about in another way, or not at all; docs/fusing.md says so.
APART = {("build", "output"), ("train", "output"), ("bench", "lines"), ("build", "timing_cache"), ("stream", "clips")}


def _verbs(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    ways = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not ways:
        yield name, parser
    for action in ways:
        for word, below in action.choices.items():
            yield from _verbs(below, f"{name} {word}".strip())


def _make_sources() -> Uint8Array:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32), np.uint8)
    for side in ("ir", "vis"):
        write_image(f"{side}/x.png", pixels)
    return pixels


@pytest.mark.parametrize(("words", "name"), TABLE, ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]))
def test_a_file_is_not_replaced_unasked(run_cli: RunCli, words: tuple[str, ...], name: str) -> None:
    _make_sources()
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(MINE)
    before = sorted(Path().rglob("*"))
    full = words if words[-1] in (".", "frame_%04i.jpg") else (*words, name)
    code, out, err = run_cli(*full)
    assert (code, out, one_sentence(err)) == (OutputError.exit_code, "", True), err
    assert path.read_bytes() == MINE
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        (*STREAM, "-o", "./x.mkv"),
        (*STREAM, "-o", "null://", "--ir", "x.mkv"),
        ("stream", "-o", "null://", "--ir", camera("ir"), "--rig", "rig.yaml"),
    ],
    ids=["output", "source", "rig"],
)
def test_the_report_of_a_stream_replaces_none_of_its_videos(run_cli: RunCli, words: tuple[str, ...]) -> None:
    write_rig("rig.yaml", replace(RIG, vis=replace(RIG.vis, uri="x.mkv")))
    Path("x.mkv").write_bytes(MINE)
    Path("same.json").symlink_to("x.mkv")
    code, out, err = run_cli(*words, "--json", "same.json", "--overwrite")
    assert (code, out, one_sentence(err)) == (UsageError.exit_code, "", True), err
    assert Path("x.mkv").read_bytes() == MINE


def test_the_table_holds_every_option_that_names_an_output() -> None:
    told = {"output", "outputs", "json", "csv", "html", "latex", "markdown", "overlay", "record", "save_config"}
    told |= {name for _, name in APART}
    for verb, parser in _verbs(make_parser()):
        options = {action.dest: action.option_strings for action in parser._actions}
        rows = [set(words) for words, _ in TABLE if words[: len(verb.split())] == tuple(verb.split())]
        for dest in sorted(told & options.keys()):
            if (verb, dest) in APART or (verb, dest) == ("align time", "output"):
                continue
            assert "overwrite" in options, (verb, dest)
            assert any(words & set(options[dest]) for words in rows), (verb, dest)


def test_what_holds_nothing_is_no_reason_to_ask(run_cli: RunCli, tmp_path: Path) -> None:
    Path("empty.json").touch()
    Path("link.json").symlink_to("absent.json")
    for name in ("empty.json", "link.json", "absent.json", ".", "/dev/null", "/dev/stdout", "x" * 300, f"{tmp_path}/no/where"):
        assert not is_occupied(Path(name)), name
    Path("full.json").write_bytes(MINE)
    Path("other.json").symlink_to("full.json")
    assert is_occupied(Path("full.json"))
    assert is_occupied(Path("other.json"))
    assert run_cli("inspect", "ir_vis", "--json", "empty.json")[0] == 0
    assert run_cli("inspect", "ir_vis", "--json", "other.json")[0] == 4
    assert run_cli("inspect", "ir_vis", "--json", "other.json", "--overwrite")[0] == 0
    assert Path("other.json").is_symlink()
    assert json.loads(Path("full.json").read_text())


def test_a_stream_that_may_overwrite_starts_again_beside_its_files(run_cli: RunCli) -> None:
    outputs = ("-o", "fused.mp4", "-o", "frames", "--record", "recording", "--json", "report.json")
    assert run_cli(*STREAM, *outputs)[0] == 0
    Path("frames/000005.png").write_bytes(MINE)  # of a longer run
    Path("frames/notes.txt").write_bytes(MINE)
    assert run_cli(*STREAM, *outputs)[0] == 4
    assert run_cli(*STREAM, *outputs, "--frames", 2, "--overwrite")[0] == 0
    assert json.loads(Path("report.json").read_text())["pairs"]["shown"] == 2
    assert frames_of("fused.mp4") == 2
    assert sorted(path.name for path in Path("frames").iterdir()) == ["000000.png", "000001.png", "notes.txt"]
    assert read_recording(Path("recording")).end == 2


def test_a_configuration_may_allow_it(run_cli: RunCli) -> None:
    outputs = ("-o", "fused.mkv")
    assert run_cli(*STREAM, *outputs, "--save-config", "site.yaml")[0] == 0
    # This is about the configuration file alone.
    assert run_cli(*STREAM, *outputs, "--save-config", "site.yaml", "--overwrite")[0] == 0
    assert not read_config("site.yaml").overwrite
    run = ("stream", "--config", "site.yaml", "--json", "report.json")
    assert [run_cli(*run)[0], run_cli(*run)[0]] == [0, 4]
    Path("site.yaml").write_text(f"{Path('site.yaml').read_text()}overwrite: true\n")
    assert [run_cli(*run)[0], run_cli(*run)[0]] == [0, 0]


def test_a_site_follows_its_configuration(run_cli: RunCli) -> None:
    rig = {"ir": FILES[1], "vis": FILES[3]}
    site = {"network": "fast", "threads": 1, "rigs": {name: {**rig, "outputs": [f"{name}.mkv"]} for name in ("a", "b")}}
    Path("site.yaml").write_text(yaml.safe_dump(site))
    run = ("stream", "--config", "site.yaml", "--json", "report.json")
    assert [run_cli(*run)[0], run_cli(*run)[0]] == [0, 4]
    Path("report.json").unlink()
    before = Path("a.mkv").read_bytes()
    assert run_cli(*run)[0] == 4
    assert Path("a.mkv").read_bytes() == before
    Path("site.yaml").write_text(yaml.safe_dump({**site, "overwrite": True}))
    assert run_cli(*run)[0] == 0


def test_only_a_recording_is_removed_for_a_recording(run_cli: RunCli) -> None:
    for name, content in (("mine", {"notes.txt"}), ("mixed", {"recording.json", "notes.txt"}), ("images", {"ir", "vis"})):
        for entry in content:
            path = Path(name, entry)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(MINE)
        code, _, err = run_cli(*STREAM, "-o", "null://", "--record", name, "--overwrite")
        assert (code, one_sentence(err)) == (4, True)
        assert {path.name for path in Path(name).iterdir()} == content


def test_a_recording_is_not_replaced_by_one_of_itself(run_cli: RunCli) -> None:
    """Its folders of images are sources of their own, and would be removed before they are read."""
    assert run_cli(*STREAM, "-o", "null://", "--record", "recording")[0] == 0
    before = sorted(Path("recording").rglob("*"))
    words = ("stream", "--network", "fast", "--threads", 1, "--record", "recording", "--overwrite")
    again = ("--ir", "recording/ir", "--vis", "recording/vis/%06d.png", "-o", "null://")
    for rest in (again, (*FILES, "-o", "recording/ir"), (*FILES, "-o", "recording/fused.mkv")):
        code, _, err = run_cli(*words, *rest)
        assert (code, one_sentence(err)) == (UsageError.exit_code, True), err
        assert sorted(Path("recording").rglob("*")) == before


def test_a_hard_link_to_a_source_is_that_source(run_cli: RunCli) -> None:
    assert run_cli(*STREAM, "-o", "source.mkv")[0] == 0
    Path("link.mkv").hardlink_to("source.mkv")
    before = Path("source.mkv").read_bytes()
    words = ("stream", "--network", "fast", "--threads", 1, "--ir", "source.mkv", *FILES[2:], "-o", "link.mkv", "--overwrite")
    code, _, err = run_cli(*words)
    assert (code, one_sentence(err)) == (UsageError.exit_code, True)
    assert Path("source.mkv").read_bytes() == before


def test_a_recording_on_another_disk_is_not_removed_through_a_link(run_cli: RunCli) -> None:
    assert run_cli(*STREAM, "-o", "null://", "--record", "recording")[0] == 0
    Path("recording/ir").rename("elsewhere")
    Path("recording/ir").symlink_to("../elsewhere")
    assert run_cli(*STREAM, "-o", "null://", "--record", "recording", "--overwrite")[0] == 0
    assert read_recording(Path("recording")).end == 3
    assert Path("elsewhere/000000.png").exists()


def test_a_recording_that_was_killed_at_its_beginning_is_replaced(run_cli: RunCli) -> None:
    Path("recording").mkdir()
    Path("recording/.recording.json.x7").touch()
    assert run_cli(*STREAM, "-o", "null://", "--record", "recording", "--overwrite")[0] == 0


@pytest.mark.parametrize("words", [("time", "rig.yaml", *FILES), ("auto", *PAIR, "--rig", "rig.yaml")])
def test_a_rig_whose_name_is_too_long_is_one_error(run_cli: RunCli, words: tuple[str, ...]) -> None:
    _make_sources()
    write_rig("rig.yaml", RIG)
    code, out, err = run_cli("align", *words, "-o", "x" * 300)
    assert (code, out, one_sentence(err)) == (OutputError.exit_code, "", True), err


def test_no_two_outputs_have_one_name(run_cli: RunCli) -> None:
    _make_sources()
    for words in (
        (*EVAL, "--csv", "scores.txt", "--markdown", "./scores.txt"),
        ("fuse", "ir/x.png", "vis/x.png", "-o", "fused.png", "--json", "fused.png"),
    ):
        code, _, err = run_cli(*words)
        assert (code, one_sentence(err)) == (UsageError.exit_code, True), err
    assert not Path("scores.txt").exists()
    assert run_cli(*EVAL, "--csv", "/dev/null", "--markdown", "/dev/null")[0] == 0


def test_a_shard_replaces_only_a_report_of_its_own(run_cli: RunCli) -> None:
    _make_sources()
    words = ("fuse", "ir", "vis", "--network", "fast", "--threads", 1, "-o", "fused", "--shard", "0/1", "--json", "report.json")
    Path("report.json").write_bytes(MINE)
    assert run_cli(*words)[0] == OutputError.exit_code
    assert Path("report.json").read_bytes() == MINE
    assert run_cli(*words, "--overwrite")[0] == 0
    assert run_cli(*words)[0] == 0
    assert json.loads(Path("report.json").read_text())["verified"] == ["x"]


@pytest.mark.slow
def test_a_bundle_is_replaced_by_another_engine_only_when_told_to(run_cli: RunCli) -> None:
    words = ("build", "--network", "fast", "--backend", "native", "-o", "bundle", "--precision", "fp32")
    assert run_cli(*words)[0] == 0
    assert run_cli(*words)[0] == 0  # the same engine
    before = Path("bundle/manifest.json").read_bytes()
    other = (*words, "--weights", weights_path("medical", "fast"), "--task", "medical")
    code, _, err = run_cli(*other)
    assert (code, one_sentence(err)) == (OutputError.exit_code, True)
    assert Path("bundle/manifest.json").read_bytes() == before
    assert run_cli(*other, "--overwrite")[0] == 0
    assert json.loads(Path("bundle/manifest.json").read_text())["spec"]["task"] == "medical"


def test_the_shard_of_an_evaluation_goes_on_from_its_own_report(run_cli: RunCli) -> None:
    pixels = _make_sources()
    words = (*EVAL, "--shard", "0/1", "--json", "scores.json")
    assert run_cli(*words)[0] == 0
    write_image("vis/x.png", np.ascontiguousarray(pixels[::-1]))
    before = Path("scores.json").read_bytes()
    assert run_cli(*words)[0] == 0
    assert Path("scores.json").read_bytes() != before


def test_python_asks_by_the_same_rule() -> None:
    options = {"network": "fast", "threads": 1}
    fuse_video(FILES[1], FILES[3], "fused.mkv", **options)
    with pytest.raises(OutputError):
        fuse_video(FILES[1], FILES[3], "fused.mkv", **options)
    assert fuse_video(FILES[1], FILES[3], "fused.mkv", overwrite=True, **options)["pairs"]["shown"] == 3
    with pytest.raises(UsageError):
        fuse_video(FILES[1], FILES[3], "fused.mkv", overwrites=True, **options)
