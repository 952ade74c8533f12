"""Archives in shares: together they are the whole, what is done is not done again, and a kill loses nothing."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from refusion_edge.archive.cluster import Done, Task, _plain, _Worker
from refusion_edge.archive.fusing import FusePlan, Outcome
from refusion_edge.archive.manifest import Entry, Manifest, manifest_path, sha256_of
from refusion_edge.archive.shards import ALL, Shard, parse_shard
from refusion_edge.arrays import Array
from refusion_edge.backends.native import NativeBackend, instruction_sets
from refusion_edge.errors import BackendError, DiskFullError, InputError, OutputError, RefusionError, UsageError
from refusion_edge.files import Claim
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.pairs import PairPaths
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.weights import weights_path
from tests.conftest import ROOT
from tests.raising import raises

Cli = Callable[..., tuple[int, str, str]]
PAIRS = 11
FUSE = ("fuse", "ir", "vis", "--network", "fast", "--threads", 1)


@pytest.fixture
def archive(picture: Callable[..., Array]) -> None:
    for number in range(PAIRS):
        write_image(f"ir/{number}.png", picture(24, 32))
        write_image(f"vis/{number}.png", picture(24, 32, 3))


def hashes(folder: str) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in Path(folder).glob("*.png")}


def entries(folder: str) -> list[dict[str, str]]:
    return [json.loads(line) for path in Path(folder).glob("manifest*.jsonl") for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("total", "count"), [(0, 3), (1, 3), (11, 4), (12, 4), (1_000_003, 7)])
def test_shares_are_disjoint_complete_and_even(total: int, count: int) -> None:
    bounds = [Shard(index, count).bounds(total) for index in range(count)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(bounds))
    sizes = [end - first for first, end in bounds]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["", "3", "3/3", "4/3", "-1/3", "1/0", "a/b", "1/3/5", "٣/٤"])
def test_other_shards_are_refused(text: str) -> None:
    with raises(UsageError, text or "''", remedy="0/16"):
        parse_shard(text)


@pytest.mark.usefixtures("archive")
def test_the_shares_of_an_archive_are_the_whole(run_cli: Cli) -> None:
    assert run_cli(*FUSE, "-o", "whole")[0] == 0
    assert not list(Path("whole").glob("manifest*"))
    for index in range(3):
        assert run_cli(*FUSE, "-o", "shares", "--shard", f"{index}/3")[0] == 0
    assert hashes("shares") == hashes("whole")
    found = entries("shares")
    assert sorted(entry["file"] for entry in found) == sorted(hashes("whole"))
    assert {entry["file"]: entry["sha256"] for entry in found} == hashes("whole")
    assert all(entry["a_sha256"] == sha256_of(Path("ir", entry["file"])) for entry in found)


@pytest.mark.usefixtures("archive")
def test_what_is_done_and_intact_is_not_done_again(run_cli: Cli) -> None:
    run_cli(*FUSE, "-o", "out", "--shard", "0/2")
    run_cli(*FUSE, "-o", "out", "--shard", "1/2")
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.png")}
    Path("out/3.png").write_bytes(Path("out/3.png").read_bytes()[:-9])
    Path("out/5.png").unlink()
    write_image("ir/7.png", 255 - read_image("ir/7.png"))
    code, out, _ = run_cli(*FUSE, "-o", "out", "--shard", "0/1", "--json", "again.json")
    assert code == 0
    document = json.loads(Path("again.json").read_text())
    assert sorted(entry["name"] for entry in document["written"]) == ["3", "5", "7"]
    assert len(document["verified"]) == PAIRS - 3
    assert "8 already existed" in out
    changed = {path.stem for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {"3", "5", "7"}
    # The run over everything leaves one manifest of everything.
    lines = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert {entry["file"]: entry["sha256"] for entry in lines} == hashes("out")
    # Again: nothing is left to do, and nothing is written, not even a line.
    size = Path("out/manifest.jsonl").stat().st_size
    assert run_cli(*FUSE, "-o", "out", "--shard", "0/1")[0] == 0
    assert Path("out/manifest.jsonl").stat().st_size == size


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("change", [("--gray",), ("--range", "fixed"), ("--a-range", "0:200"), ("--network", "refusion")])
def test_other_settings_fuse_again(run_cli: Cli, change: tuple[str, ...]) -> None:
    run_cli(*FUSE, "-o", "out", "--shard", "0/4")
    run_cli(*FUSE, "-o", "out", "--shard", "0/4", *change, "--json", "again.json")
    assert json.loads(Path("again.json").read_text())["verified"] == []


def test_the_instruction_set_decides_the_last_bits() -> None:
    plan = FusePlan("ir_vis", network="fast", threads=1)
    weights = read_checkpoint(weights_path("ir_vis", "fast")).state
    digests = {plan.digest(NativeBackend(weights, threads=1, isa=isa)) for isa in instruction_sets()}
    assert len(digests) == len(instruction_sets()) > 1


@pytest.mark.usefixtures("archive")
def test_an_empty_shard_is_said_and_noted(run_cli: Cli) -> None:
    words = ("fuse", "ir/1*.png", "vis/1*.png", "--network", "fast", "--threads", 1, "-o", "out")
    for _ in range(2):
        code, _, err = run_cli(*words, "--shard", "0/3", "--json", "report.json")
        assert (code, len(err.splitlines())) == (0, 1)
        assert "0/3" in err
        assert err.strip() in [remark["text"] for remark in json.loads(Path("report.json").read_text())["remarks"]]
    assert [json.loads(line) for line in Path("out/manifest-0-of-3.jsonl").read_text().splitlines()] == [{"empty": True}]
    assert run_cli(*words, "--shard", "0/1")[0] == 0
    assert len(hashes("out")) == 2


@pytest.mark.usefixtures("archive")
def test_images_of_others_are_not_replaced_unasked(run_cli: Cli) -> None:
    assert run_cli(*FUSE, "-o", "out")[0] == 0
    Path("out/manifest-of-evidence.jsonl").write_text("somebody else's\n")
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    for words in ((), ("--shard", "0/2"), ("--cluster", "ray")):
        code, _, err = run_cli(*FUSE, "-o", "out", *words)
        assert (code, "--overwrite" in err) == (OutputError.exit_code, True)
    assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    assert run_cli(*FUSE, "-o", "out", "--shard", "0/2", "--overwrite")[0] == 0
    # From now on, the manifest says what is a result.
    assert run_cli(*FUSE, "-o", "out", "--shard", "1/2")[0] == 0
    assert run_cli(*FUSE, "-o", "out", "--overwrite")[0] == 0


@pytest.mark.usefixtures("archive")
def test_a_pair_that_fails_is_tried_again_and_the_others_are_kept(run_cli: Cli) -> None:
    good = Path("ir/4.png").read_bytes()
    Path("ir/4.png").write_bytes(good[:50])
    code, _, err = run_cli(*FUSE, "-o", "out", "--shard", "0/1")
    assert code == 4
    assert "pair 4" in err
    Path("ir/4.png").write_bytes(good)
    assert run_cli(*FUSE, "-o", "out", "--shard", "0/1", "--json", "again.json")[0] == 0
    document = json.loads(Path("again.json").read_text())
    assert [entry["name"] for entry in document["written"]] == ["4"]
    assert len(document["verified"]) == PAIRS - 1


def test_a_share_of_16_bit_images_has_the_depth_of_the_whole(run_cli: Cli, picture: Callable[..., Array]) -> None:
    import numpy as np

    for number in range(4):
        write_image(f"ir/{number}.png", picture(24, 32))
        # Only the last one shows that these are 12-bit images.
        write_image(f"vis/{number}.png", (picture(24, 32).astype(np.uint16) << (4 if number == 3 else 2)))
    run_cli(*FUSE, "-o", "whole")
    for index in range(4):
        run_cli(*FUSE, "-o", "shares", "--shard", f"{index}/4")
    assert hashes("shares") == hashes("whole")


@pytest.mark.usefixtures("archive")
def test_a_share_has_one_process(run_cli: Cli) -> None:
    Path("out").mkdir()
    manifest_path(Path("out"), Shard(0, 2)).touch()
    with Claim(manifest_path(Path("out"), Shard(0, 2))):
        assert run_cli(*FUSE, "-o", "out", "--shard", "0/2")[0] == OutputError.exit_code
        assert run_cli(*FUSE, "-o", "out", "--shard", "1/2")[0] == 0


def entry(name: str) -> Entry:
    return Entry(name, f"{name}.png", "1", "2", "3", "4")


def test_a_line_that_was_cut_off_is_not_there() -> None:
    with Manifest(Path("out"), ALL) as manifest:
        for name in "abc":
            manifest.add(entry(name))
    path = Path("out/manifest.jsonl")
    path.write_bytes(path.read_bytes()[:-7])
    with Manifest(Path("out"), ALL) as manifest:
        assert list(manifest.entries) == ["a", "b"]
        manifest.add(entry("d"))
    with Manifest(Path("out"), Shard(1, 2)) as manifest:
        assert list(manifest.entries) == ["a", "b", "d"]


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"name": 1}', "[" * 5000, json.dumps({**dict.fromkeys(Entry.__slots__, "x"), "file": "../x.png"})]
)
def test_a_damaged_manifest_is_one_error(line: str) -> None:
    Path("out").mkdir()
    Path("out/manifest.jsonl").write_text(line + "\n")
    with raises(InputError, "manifest.jsonl"), Manifest(Path("out"), ALL):
        pass


def test_two_files_have_no_shares(run_cli: Cli, picture: Callable[..., Array]) -> None:
    write_image("a.png", picture(24, 32))
    write_image("b.png", picture(24, 32))
    assert run_cli("fuse", "a.png", "b.png", "-o", "c.png", "--shard", "0/2")[0] == 2
    assert run_cli("fuse", "a.png", "b.png", "-o", "c.png", "--shard", "2/2")[0] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("archive")
def test_a_killed_share_is_finished_by_the_next_run(run_cli: Cli) -> None:
    run_cli(*FUSE, "-o", "whole")
    words = [sys.executable, "-m", "refusion_edge", *map(str, FUSE), "-o", "out", "--shard", "0/1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for wanted in (1, 4, 7):
        with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline_s = time.monotonic() + 60
            while len(hashes("out")) < wanted and process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert all(hashes("whole")[name] == digest for name, digest in hashes("out").items())
    assert run_cli(*FUSE, "-o", "out", "--shard", "0/1")[0] == 0
    assert hashes("out") == hashes("whole")
    assert sorted(found["file"] for found in entries("out")) == sorted(hashes("whole"))
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".") and path.stat().st_mtime_ns == 0]


@pytest.mark.parametrize("error", [BackendError, DiskFullError, InputError])
def test_a_pair_that_fails_on_a_worker_does_not_end_the_others_and_keeps_its_exit_code(
    error: type[RefusionError], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [PairPaths(name, Path(f"{name}-a"), Path(f"{name}-b")) for name in ("bad", "good")]
    monkeypatch.setitem(sys.modules, "ray", mock.Mock(get=lambda tasks: tasks))
    outcome = Outcome(Entry("good", "good.png", "0", "1", "2", "3"), None)
    with mock.patch("refusion_edge.archive.cluster.fuse_once", side_effect=[error("what is wrong", "do this"), outcome]):
        worker = _Worker(FusePlan("ir_vis", network="fast", threads=1), [Task(pair, Path("x"), None) for pair in pairs])
        batch = worker({"number": np.arange(2)})
    bad, good = (_plain({name: column[row] for name, column in batch.items()}) for row in range(2))
    failure = Done(**bad).error
    assert failure is not None
    assert (failure.problem, failure.remedy, failure.exit_code) == ("what is wrong", "do this", error.exit_code)
    assert Done(**good).entry == outcome.entry
    assert Done(**good).error is None


def test_a_disk_that_takes_half_a_line_does_not_damage_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Entry(name, f"{name}.png", "0", "1", "2", "3") for name in ("first", "second"))
    write = os.write
    with Manifest(Path("out"), ALL) as manifest:
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
            with pytest.raises(DiskFullError):
                manifest.add(first)
        assert "first" not in manifest.entries
        manifest.add(second)
    with Manifest(Path("out"), ALL) as manifest:
        assert manifest.entries == {"second": second}
