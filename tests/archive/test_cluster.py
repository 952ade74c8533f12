"""``fuse --cluster ray`` with two workers on this machine, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refusion_edge.archive.cluster import Task, fuse_on_ray
from refusion_edge.archive.fusing import FusePlan
from refusion_edge.archive.manifest import sha256_of
from refusion_edge.arrays import Array
from refusion_edge.errors import StreamError
from refusion_edge.images.io import write_image
from refusion_edge.images.pairs import PairPaths
from tests.conftest import ROOT
from tests.raising import raises

ray = pytest.importorskip("ray", reason="ray is not installed (extra 'cluster')")

Cli = Callable[..., tuple[int, str, str]]
PAIRS = 40


@pytest.fixture
def archive(picture: Callable[..., Array], monkeypatch: pytest.MonkeyPatch) -> None:
    # The workers import the package, and this module for what it sends.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for number in range(PAIRS):
        write_image(f"ir/{number:02}.png", picture(120, 160))
        write_image(f"vis/{number:02}.png", picture(120, 160, 3))


def workers() -> set[int]:
    """Processes of actors of Ray, by their titles."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def hashes(folder: str) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in Path(folder).glob("*.png")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of Ray
@pytest.mark.usefixtures("archive")
def test_a_lost_worker_loses_no_pair_and_none_comes_twice() -> None:
    plan = FusePlan("ir_vis", network="refusion", threads=1)
    tasks = [
        Task(
            PairPaths(f"{number:02}", Path(f"ir/{number:02}.png").absolute(), Path(f"vis/{number:02}.png").absolute()),
            Path(f"out/{number:02}.png").absolute(),
            None,
        )
        for number in range(PAIRS)
    ]
    Path("out").mkdir()
    ours_before = workers()
    killed: list[int] = []
    ray.init(num_cpus=2, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    try:

        def kill() -> None:
            deadline_s = time.monotonic() + 120
            while len(hashes("out")) < 5 and time.monotonic() < deadline_s:
                time.sleep(0.01)
            found = sorted(workers() - ours_before)
            if found:
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])

        killer = threading.Thread(target=kill)
        killer.start()
        done = list(fuse_on_ray(plan, tasks, workers=2))
        killer.join()
    finally:
        ray.shutdown()
    assert killed
    assert sorted(each.name for each in done) == [f"{number:02}" for number in range(PAIRS)]
    assert all(each.problem == "" and each.entry is not None for each in done)
    assert {each.entry.file: each.entry.sha256 for each in done if each.entry} == hashes("out")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:{port}",
        "ray://127.0.0.1:{port}",
        "[::1]:{port}",
        "nowhere.invalid:70000",
        pytest.param("127.0.0.1:" + "9" * 5000, id="thousands of digits"),
        "x",
    ],
)
def test_a_cluster_that_is_not_there_is_one_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", address.format(port=taken.getsockname()[1]))
        started_s = time.monotonic()
        with raises(StreamError):
            list(fuse_on_ray(FusePlan("ir_vis", network="fast", threads=1), ()))
    assert time.monotonic() - started_s < 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("archive")
def test_the_command_gives_what_it_gives_without_a_cluster(run_cli: Cli) -> None:
    words = ("fuse", "ir", "vis", "--network", "fast", "--threads", 1)
    Path("ir/07.png").write_bytes(b"damaged")
    assert run_cli(*words, "-o", "whole")[0] == 4
    assert run_cli(*words, "-o", "out", "--cluster", "ray", "--json", "first.json")[0] == 4
    assert hashes("out") == hashes("whole")
    document = json.loads(Path("first.json").read_text())
    assert len(document["written"]) == PAIRS - 1
    assert [failure["name"] for failure in document["failed"]] == ["07"]
    assert run_cli(*words, "-o", "out", "--shard", "0/1", "--json", "again.json")[0] == 4
    assert len(json.loads(Path("again.json").read_text())["verified"]) == PAIRS - 1
