"""Run two synthetic cameras: first without faults, for the age of the shown frames; then with faults, for endurance.

Run as ``python -m benchmarks.stream_soak --minutes 60`` from the repository's root. Half of the time belongs to each network.
Faults, every few seconds: shutter freezes, late and lost frames, a lost camera, damaged frames, changes of size, steps of a
camera's clock, a slow output, storms of viewers on the browser view, an engine that fails, and a disk that fills up under the
recording, whose size is limited, and hangs until the queue before it is full. Prints memory, threads and descriptors after
warm-up and at the end, and every fault in the report; every file that was written is played.

Warm-up is the first fifth of the run of each network. By its end, every fault has happened and every queue has been full: freed
memory stays with the process, so its size follows the highest peak. The memory in use tells such a peak from a leak, with which
it would rise at the same pace to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.mean_engine import MeanEngine
from refusion_edge.backends.native import NativeBackend
from refusion_edge.fuser import Fuser
from refusion_edge.machine import keep_freed_memory
from refusion_edge.stream.outputs import disk
from refusion_edge.stream.outputs.recording import Recorder, parts_of, read_recording
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.stream.run.writer import RECORDED
from refusion_edge.stream.statistics import DISK_FULL, DISK_TOO_SLOW
from refusion_edge.tasks import find_task

LIMIT_PERIODS, LIMIT_GROWTH = 1.5, 0.02
_SIZE = "width=160&height=120"
_FAULTS_IR = "freeze_every_ms=5000&freeze_ms=600&lose_every_ms=17000&lose_ms=2500&corrupt_every=151&resize_every=400"
_FAULTS_VIS = (
    "drop_every_ms=4000&drop_ms=150&jitter_ms=8&lose_every_ms=29000&lose_ms=2000&corrupt_every=211&pan=20"
    "&step_every_ms=11000&step_ms=7000"
)
_RING_BYTES = 12_000_000
_ENGINE_FAILS_EVERY_S = 7.0
# The disk is full for a sixth of this time.
_DISK_FULL_EVERY_S = 18.0
_DISK_HANGS_EVERY_S, _FIRST_HANG_S = 61.0, 10.0
_WARM_UP = 5  # the reciprocal of its share of the time
_MEASURED = "rss_kib", "in_use_kib", "blocks", "threads", "tasks", "files"
_SAMPLED = (*_MEASURED, "ring_bytes")


def main() -> int:
    """Print figures; returns 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="length of the run with faults (default: 20)")
    parser.add_argument("--clean-s", type=float, default=20.0, help="length of the clean run, 0 for none (default: 20)")
    parser.add_argument("--port", type=int, default=8099, help="port of the browser view (default: 8099)")
    parser.add_argument("--networks", default="fast,refusion", help="networks (default: fast,refusion)")
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second of the cameras (default: 30)")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    missed = options.clean_s > 0 and _clean(options.clean_s, options.rate)
    networks = options.networks.split(",")
    found = []
    for network in networks:
        found.append(_soak(network, options.minutes * 60 / len(networks), options.port, options.rate))
        missed |= _print(found[-1])
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    return int(missed)


def _clean(seconds: float, rate_hz: float) -> bool:
    period_ms, scene = 1000 / rate_hz, f"{_SIZE}&rate={rate_hz}"
    settings = StreamSettings(
        ir=f"test://ir?{scene}", vis=f"test://vis?{scene}&skew_ms=4", outputs=("null://",), duration_s=seconds
    )
    session = StreamSession(settings, fuser=Fuser(MeanEngine(), find_task("ir_vis")))
    session.run()
    report = session.report()
    assert report is not None
    age = report["stages"]["age"]
    unexplained = sum(camera["unexplained"] for camera in report["cameras"].values())
    shown = report["pairs"]["shown"]
    print(f"clean, {seconds:g} s: {shown} fused frames, {unexplained} unexplained drops, drops {_drops(report)}")
    print(
        f"age of the shown frames: p50 {age['p50_ms'] / period_ms:.2f}, p95 {age['p95_ms'] / period_ms:.2f}, p99 "
        f"{age['p99_ms'] / period_ms:.2f} frame periods (wanted: p99 at most {LIMIT_PERIODS:g})"
    )
    return unexplained != 0 or age["p99_ms"] > LIMIT_PERIODS * period_ms


def _soak(network: str, seconds: float, port: int, rate_hz: float) -> dict[str, Any]:
    """Run a network with all faults; returns what happened."""
    stop = threading.Event()
    figures = array("q")
    looks = array("q")
    scene = f"{_SIZE}&rate={rate_hz}"
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        ring, video = Path(folder, "ring"), Path(folder, "fused.mp4")
        settings = StreamSettings(
            ir=f"test://ir?{scene}&{_FAULTS_IR}",
            vis=f"test://vis?{scene}&{_FAULTS_VIS}",
            outputs=(str(video), "null://?delay_ms=400", f"view://127.0.0.1:{port}"),
            network=network,
            backend="native",
            record=str(ring),
            record_limit=_RING_BYTES,
            duration_s=seconds,
        )
        helpers = [
            threading.Thread(target=_sample, args=(figures, ring, stop)),
            threading.Thread(target=_storm, args=(port, looks, stop)),
        ]
        before = _figures()
        session = StreamSession(settings)
        with _failing_engine() as failures, _full_disk(ring) as filled, _hanging_disk(rate_hz) as hung:
            for helper in helpers:
                helper.start()
            try:
                session.run()
            finally:
                stop.set()
                for helper in helpers:
                    helper.join()
        time.sleep(0.5)
        report = session.report()
        assert report is not None
        return {
            "network": network,
            "seconds": seconds,
            "report": {name: value for name, value in report.items() if name not in ("events", "skew")},
            "injected": {"engine": len(failures), "disk": len(filled), "hangs": len(hung), "viewers": len(looks)},
            "before": before,
            "after": _figures(),
            "figures": [
                dict(zip(_SAMPLED, figures[at : at + len(_SAMPLED)], strict=True))
                for at in range(0, len(figures), len(_SAMPLED))
            ],
            "played": {"video": _frames(video), "parts": [_play(part) for part in parts_of(ring)], "ring": _play(ring)},
        }


def _print(found: dict[str, Any]) -> bool:
    report, figures, injected = found["report"], found["figures"], found["injected"]
    warm = figures[len(figures) // _WARM_UP :]
    third = max(1, len(warm) // 3)

    def of(name: str) -> tuple[float, float]:
        early, late = (float(np.median([row[name] for row in rows])) for rows in (warm[:third], warm[-third:]))
        return early, late

    unexplained = sum(camera["unexplained"] for camera in report["cameras"].values())
    print(f"\n{found['network']} with faults, {found['seconds'] / 60:.1f} min: {report['pairs']['modes']}")
    for side, camera in report["cameras"].items():
        faults = {name: camera[name] for name in ("freezes", "losses", "reconnects", "missing_at_source")}
        faults["steps"] = camera["timing"]["steps"]
        print(f"  {side}: {camera['in']} in, {camera['unexplained']} unexplained, {faults}, drops {camera['drops']}")
    print(f"  pairs not shown {report['pairs']['drops']}; {report['events_total']} events; injected {injected}")
    for name, output in report["outputs"].items():
        print(f"  {name}: {output}")
    largest = max(row["ring_bytes"] for row in figures)
    reopened, recorded = report["engine"]["reopened"], report["recording"]
    print(f"  engine reopened {reopened} times; recording {recorded}, at most {largest / 1e6:.2f} MB")
    print(f"  played: {found['played']}")
    growths = {}
    for name in _MEASURED:
        early, late = of(name)
        growths[name] = late / early - 1
        quarters = ", ".join(f"{100 * slope:+.2f}" for slope in _slopes([row[name] for row in warm]))
        print(f"  {name}: {early:.0f} after warm-up, {late:.0f} at the end: {100 * growths[name]:+.2f} % (quarters {quarters})")
    before, after = found["before"], found["after"]
    print(f"  threads {before['threads']} before, {after['threads']} after; descriptors {before['files']} and {after['files']}")
    problems = {
        "memory grows": max(growths["rss_kib"], growths["in_use_kib"], growths["blocks"]) > LIMIT_GROWTH,
        "threads grow": growths["tasks"] > 0,
        # The first run of asyncio and of the resolver leaves a few descriptors for good.
        "threads or descriptors are left": after["threads"] > before["threads"] or after["files"] > before["files"] + 2,
        "frames are unexplained": unexplained != 0,
        "the engine's failures are not all in the report": reopened != injected["engine"],
        "the full disk is not in the report": bool(injected["disk"]) != bool(recorded["drops"].get(DISK_FULL)),
        "the disk that hung is not in the report": bool(injected["hangs"]) != bool(recorded["drops"].get(DISK_TOO_SLOW)),
        "the recording is too large": largest > _RING_BYTES,
        "nothing was recorded": not found["played"]["ring"],
        "the video is not whole": found["played"]["video"] != report["outputs"][_video_of(report)]["frames"],
    }
    missed = [text for text, is_so in problems.items() if is_so]
    print(f"  {'; '.join(missed) or 'all limits are kept'}")
    return bool(missed)


def _video_of(report: dict[str, Any]) -> str:
    return next(name for name in report["outputs"] if name.endswith(".mp4"))


@contextlib.contextmanager
def _failing_engine() -> Iterator[list[float]]:
    """Let the engine fail every few seconds; gives the times."""
    fuse, failures = NativeBackend._fuse, [time.monotonic()]

    def failing(backend: NativeBackend, *planes: Any) -> Any:
        if time.monotonic() - failures[-1] > _ENGINE_FAILS_EVERY_S:
            failures.append(time.monotonic())
            raise RuntimeError("injected: the device does not answer")
        return fuse(backend, *planes)

    with mock.patch.object(NativeBackend, "_fuse", failing):
        began = failures[0]
        failed: list[float] = []
        yield failed
        failed += [at for at in failures if at != began]


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[list[float]]:
    """Let the disk below a folder be full every few seconds; gives the times at which it was found so."""
    began_s, found, usage = time.monotonic(), list[float](), shutil.disk_usage

    def disk_usage(path: Path) -> Any:
        real, now_s = usage(path), time.monotonic() - began_s
        if not Path(path).is_relative_to(folder) or now_s % _DISK_FULL_EVERY_S < _DISK_FULL_EVERY_S * 5 / 6:
            return real
        found.append(now_s)
        return real._replace(free=0)

    with mock.patch.object(disk.shutil, "disk_usage", disk_usage):
        yield found


@contextlib.contextmanager
def _hanging_disk(rate_hz: float) -> Iterator[list[float]]:
    """Let the disk hang every minute for as long as two cameras need to fill the recorder's queue; gives the times."""
    write, next_s, hung = Recorder.write, time.monotonic() + _FIRST_HANG_S, list[float]()

    def hanging(recorder: Recorder, item: Any) -> None:
        nonlocal next_s
        if (now_s := time.monotonic()) >= next_s:
            hung.append(now_s)
            next_s = now_s + _DISK_HANGS_EVERY_S
            # Half as long again, for frames are dropped and cameras lost.
            time.sleep(1.5 * RECORDED / (2 * rate_hz))
        write(recorder, item)

    with mock.patch.object(Recorder, "write", hanging):
        yield hung


def _storm(port: int, looks: array[int], stop: threading.Event) -> None:
    """Let a dozen viewers come every few seconds, look for a moment, and go without a word."""
    import aiohttp

    async def look() -> None:
        async with aiohttp.ClientSession() as session:
            viewers = []
            for _ in range(12):
                try:
                    viewers.append(await session.ws_connect(f"http://127.0.0.1:{port}/ws", max_msg_size=0))
                except aiohttp.ClientError:
                    return
            for viewer in viewers[::2]:
                await asyncio.wait_for(viewer.receive(), 5)
                looks.append(1)

    while not stop.wait(3.0):
        try:
            asyncio.run(look())
        except (TimeoutError, asyncio.TimeoutError):
            continue


def _sample(figures: array[int], ring: Path, stop: threading.Event) -> None:
    """Add a sample every two seconds, without objects of its own that would count as growth."""
    while not stop.wait(2.0):
        figures.extend({**_figures(), "ring_bytes": _room(ring)}[name] for name in _SAMPLED)


def _slopes(values: list[int]) -> list[float]:
    """Growth in each quarter, between the medians of its first and its last third."""
    quarters = [part for part in np.array_split(values, 4) if len(part) > 2]
    return [float(np.median(part[-(len(part) // 3) :]) / np.median(part[: len(part) // 3]) - 1) for part in quarters]


def _figures() -> dict[str, int]:
    """What the process holds: memory, memory that the C library and Python have handed out, threads and descriptors."""
    status = Path("/proc/self/status").read_text()
    rss_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return {
        "rss_kib": rss_kib,
        "in_use_kib": bytes_in_use() >> 10,
        "blocks": sys.getallocatedblocks(),
        "threads": threading.active_count(),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


def bytes_in_use() -> int:
    """Memory that glibc has handed out, without that of Python's small objects, in bytes."""

    class Counts(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "o", "s", "h", "mapped", "u", "f", "used", "free", "top")]

    count = ctypes.CDLL(None).mallinfo2
    count.restype = Counts
    found = count()
    return int(found.used + found.mapped)


def _room(folder: Path) -> int:
    """Room that a folder takes on the disk, in bytes."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in (".", *names):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found += Path(place, name).lstat().st_blocks * 512
    return found


def _play(folder: Path) -> int:
    """Read every frame of a recording; returns their number."""
    recording = read_recording(folder)
    for number in range(len(recording.rows)):
        recording.read(number)
    return len(recording.rows)


def _frames(video: Path) -> int:
    import av

    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def _drops(report: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {side: camera["drops"] for side, camera in report["cameras"].items()} | {"pairs": report["pairs"]["drops"]}


if __name__ == "__main__":
    raise SystemExit(main())
