"""Kill commands at random moments, and check that no incomplete file is read as complete and that all can be finished.

Run as ``python -m benchmarks.kills --kills 200 --seed 1`` from the repository's root. Victims: ``build``, ``fuse --shard``,
``train``, ``stream --record`` with and without a limit, ``stream`` into each kind of video and into a clip of the page, and
``eval --shard``. Every kill is SIGKILL, at a moment drawn uniformly from the time that the command takes undisturbed. The
modules that it needs are imported before, so that the kills hit its work and two hundred of them take minutes. After each kill,
the files on the disk are read as a user would read them. At the end, every victim is finished and compared with a run that was
never killed: bundles, images, manifests, scores, and the bits of the trained weights.

A killed stream loses the frames after the last one that its file holds. For each kind of file, the age of the oldest of them at
the kill is printed: since it was written, since it was queued to be written, and since its capture. The first must be less than
a second: that is what encoders and files hold back. The others also contain what a busy machine needs for fusing and writing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge.archive.manifest import Manifest, sha256_of
from refusion_edge.archive.shards import ALL
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.bundle.manifest import MANIFEST
from refusion_edge.cli import main as run_command
from refusion_edge.errors import InputError
from refusion_edge.evaluation.shards import read_shard
from refusion_edge.images.io import read_image, write_image
from refusion_edge.stream.frames import Frame, FusedFrame
from refusion_edge.stream.outputs.clips import Clips
from refusion_edge.stream.outputs.recording import Recorder, read_recording
from refusion_edge.stream.outputs.video import VIDEO_ENCODINGS, VideoSink
from refusion_edge.stream.run.writer import RecordWriter, Writer

_PAIRS = 6
_RECORDED_S = 3
_CAMERA = "test://{side}?width=160&height=120&rate={rate}"
_MOST_LOST_S = 1.0
_SINCE = "it was written", "it was queued", "its capture"
_VIDEOS = tuple(suffix.removeprefix(".") for suffix in VIDEO_ENCODINGS if suffix != ".m4v")
_TRAIN = (
    "run.steps=12", "run.batch=1", "run.crop_px=16", "run.late_crop_px=16", "validation.crops=1", "validation.images=1",
    "validation.every=1000", "checkpoint.every=4", "meta.engine=off",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Victim:
    """A command that is killed.

    Attributes:
        name: Its name.
        words: The command, from what is there already.
        look: Reads what is there after a kill; raises AssertionError, or any other error, if it is not sound.
        finish: Compares the finished result with the undisturbed one.
    """

    name: str
    words: Callable[[], Sequence[str]]
    look: Callable[[], None]
    finish: Callable[[], None]


def main() -> int:
    """Print what happened; ends with an error at the first unsound file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of victims and moments (default: 1)")
    default = ",".join(("build", "fuse", "eval", "train", "record", "ring", "clip", *_VIDEOS))
    parser.add_argument("--victims", default=default, help="which (default: all)")
    parser.add_argument("--rate", type=float, default=30.0, help="frames per second of the cameras (default: 30)")
    options = parser.parse_args()
    wanted = options.victims.split(",")
    if "train" in wanted:
        # Imported before the commands are forked, for each would take seconds.
        import torch

        torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, contextlib.chdir(folder):
        os.environ["REFUSION_EDGE_CACHE"], os.environ["REFUSION_EDGE_TRUSTED"] = f"{folder}/cache", f"{folder}/trusted"
        _write_sources()
        victims = [victim for victim in _victims(options.rate) if victim.name in wanted]
        draw = random.Random(options.seed)
        lengths_s, killed = {}, dict.fromkeys(wanted, 0)
        for victim in victims:
            lengths_s[victim.name] = _undisturbed(victim)
            print(f"{victim.name}: {lengths_s[victim.name]:.1f} s undisturbed", flush=True)
        for number in range(options.kills):
            victim = draw.choice(victims)
            moment_s = draw.uniform(0, lengths_s[victim.name])
            killed[victim.name] += _run(victim.words(), moment_s) is None
            try:
                victim.look()
            except Exception as error:
                print(f"kill {number} of {victim.name} after {moment_s:.3f} s: {error!r}")
                raise
        for victim in victims:
            code = _run(victim.words(), None)
            assert code == 0, f"{victim.name} cannot be finished: exit code {code}"
            victim.look()
            victim.finish()
            print(f"{victim.name}: killed {killed[victim.name]} times, finished, and equal to the undisturbed run")
    missed = False
    for name, losses in _LOSSES_S.items():
        stages = list(zip(*losses, strict=True))
        missed |= max(stages[0]) >= _MOST_LOST_S
        ages = [
            f"{max(ages):.3f} s (median {np.median(ages):.3f}) since {what}" for ages, what in zip(stages, _SINCE, strict=True)
        ]
        print(f"{name}: {len(losses)} kills cost at most {', '.join(ages)}")
    return int(missed)


def _write_sources() -> None:
    draw = np.random.default_rng(0)
    for number in range(_PAIRS):
        for side in ("ir", "vis"):
            write_image(f"data/{side}/{number}.png", draw.integers(0, 256, (48, 64), np.uint8))


def _undisturbed(victim: Victim) -> float:
    """Run a victim to its end, and put the result aside as the one to compare with; returns how long it took, in s."""
    assert _run(victim.words(), None, tell=_IMPORTED) == 0, f"{victim.name} does not work undisturbed"
    for name in _IMPORTED.read_text().split():
        with contextlib.suppress(Exception):  # a name that only exists inside its package
            importlib.import_module(name)
    if Path(victim.name).exists():
        shutil.rmtree(victim.name)
    started_s = time.monotonic()
    code = _run(victim.words(), None)
    took_s = time.monotonic() - started_s
    assert code == 0, f"{victim.name} does not work undisturbed: exit code {code}"
    victim.look()
    if Path(victim.name).exists():
        Path(victim.name).rename(f"whole-{victim.name}")
    return took_s


def _run(words: Sequence[str], moment_s: float | None, tell: Path | None = None) -> int | None:
    """Run a command in a process of its own, and kill it after some time.

    Args:
        words: The command.
        moment_s: When to kill it; None for not at all.
        tell: File that it writes the names of its modules to.

    Returns:
        Its exit code; None if it was killed.
    """
    _KILLED_NS.clear()
    _GIVEN.unlink(missing_ok=True)  # of the command before, which one killed at once would leave
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1) if moment_s is None else (0, 1, 2):
            os.dup2(null, descriptor)
        code = 70
        try:
            if words[0] == "stream":
                _write_down_frames()
            if "--clips" in words:
                threading.Thread(target=_start_clip, daemon=True).start()
            code = run_command(words)
            if tell is not None:
                tell.write_text("\n".join(sys.modules))
        finally:
            os._exit(code)
    deadline_s = None if moment_s is None else time.monotonic() + moment_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline_s is not None and time.monotonic() >= deadline_s:
            os.kill(child, signal.SIGKILL)
            killed_ns = time.monotonic_ns()
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                return os.waitstatus_to_exitcode(status)
            _KILLED_NS.append(killed_ns)
            return None
        time.sleep(0.001)


_IMPORTED, _GIVEN, _PORT = Path("imported"), Path("given"), 8197
_LOSSES_S: dict[str, list[tuple[float, ...]]] = {}
_KILLED_NS: list[int] = []  # when the last command was killed; empty if it was not


def _write_down_frames() -> None:
    """Let this process write each frame down when it is given to what writes it, in a file that outlives a kill."""
    log = os.open(_GIVEN, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def logged(put: Callable[..., Any]) -> Callable[..., Any]:
        def logging(writer: Any, item: Any) -> Any:
            if isinstance(item, Frame | FusedFrame):
                os.write(log, f"{type(writer).__name__} {item.time_ns} {time.monotonic_ns()}\n".encode())
            return put(writer, item)

        return logging

    for writer, name in ((Writer, "put"), (RecordWriter, "keep"), (Clips, "offer"), (VideoSink, "write"), (Recorder, "write")):
        setattr(writer, name, logged(getattr(writer, name)))


def _given_to(writer: type) -> list[tuple[int, int]]:
    """Times of the frames that were given to what writes them: when each was captured, and when it was given."""
    rows = [line.split() for line in _GIVEN.read_text().splitlines()] if _GIVEN.exists() else []
    return [(int(captured_ns), int(given_ns)) for name, captured_ns, given_ns in rows if name == writer.__name__]


def _note_loss(name: str, written: Sequence[tuple[int, int]], queued: Sequence[tuple[int, int]]) -> None:
    """Note the ages of frames that a kill has cost, as far as they were written, and as far as they were queued."""
    if queued and _KILLED_NS:
        moments_ns = min((given_ns for _, given_ns in written), default=_KILLED_NS[0]), *map(min, zip(*queued, strict=True))
        written_ns, captured_ns, queued_ns = moments_ns
        ages_s = tuple((_KILLED_NS[0] - moment_ns) / 1e9 for moment_ns in (written_ns, queued_ns, captured_ns))
        _LOSSES_S.setdefault(name, []).append(ages_s)


def _victims(rate_hz: float) -> Iterator[Victim]:
    yield Victim("build", _build_words, _look_at_bundle, lambda: _same("build", MANIFEST, "weights.safetensors", "model.onnx"))
    yield Victim("fuse", _fuse_words, _look_at_images, _compare_images)
    yield Victim("eval", _eval_words, _look_at_scores, lambda: _same("eval", "scores.json"))
    yield Victim("train", _train_words, _look_at_run, _compare_runs)
    for name, limit in (("record", ()), ("ring", ("--record-limit", "1MB"))):
        words = partial(_stream_words, name, rate_hz, "-o", "null://", "--record", name, *limit)
        yield Victim(name, words, partial(_look_at_recording, name), lambda: None)
    for suffix in _VIDEOS:
        words = partial(_stream_words, suffix, rate_hz, "-o", f"{suffix}/video.{suffix}")
        yield Victim(suffix, words, partial(_look_at_video, suffix, Writer), lambda: None)
    words = partial(_stream_words, "clip", rate_hz, "-o", f"view://127.0.0.1:{_PORT}", "--clips", "clip")
    yield Victim("clip", words, partial(_look_at_video, "clip", Clips), lambda: None)


def _same(folder: str, *names: str) -> None:
    for name in names:
        assert Path(folder, name).read_bytes() == Path(f"whole-{folder}", name).read_bytes(), name


def _build_words() -> Sequence[str]:
    words = "build", "--task", "ir_vis", "--network", "fast", "--precision", "fp32", "--backend", "onnxruntime"
    return [*words, "--size", "48x64", "-o", "build", "--no-cache"]


def _look_at_bundle() -> None:
    if Path("build").exists():
        read_bundle("build")


def _fuse_words() -> Sequence[str]:
    if sorted(path.name for path in Path("fuse").glob("*.png")) == [f"{number}.png" for number in range(_PAIRS)]:
        shutil.rmtree("fuse")  # all are done: begin anew
    words = "fuse", "data/ir", "data/vis", "--network", "fast", "--threads", "1", "-o", "fuse", "--shard", "0/1"
    return list(words)


def _look_at_images() -> None:
    for path in Path("fuse").glob("*.png"):
        read_image(path)
    if Path("fuse").exists():
        with Manifest(Path("fuse"), ALL) as manifest:
            assert all(entry.holds(Path("fuse")) for entry in manifest.entries.values())


def _compare_images() -> None:
    whole = {path.name: sha256_of(path) for path in Path("whole-fuse").glob("*.png")}
    assert {path.name: sha256_of(path) for path in Path("fuse").glob("*.png")} == whole
    with Manifest(Path("fuse"), ALL) as manifest:
        assert {entry.file: entry.sha256 for entry in manifest.entries.values()} == whole


def _eval_words() -> Sequence[str]:
    Path("eval").mkdir(exist_ok=True)
    Path("eval/scores.json").unlink(missing_ok=True)
    words = "eval", "--ir", "data/ir", "--vis", "data/vis", "--fused", "data/vis", "--jobs", "1", "--no-trivial"
    return [*words, "--metrics", "EN,MSE,CC", "--shard", "0/1", "--json", "eval/scores.json"]


def _look_at_scores() -> None:
    if Path("eval/scores.json").exists():
        read_shard(Path("eval/scores.json"))


def _train_words() -> Sequence[str]:
    if Path("train/step-0000012.safetensors").exists():
        shutil.rmtree("train")
    if list(Path("train").glob("step-*.safetensors")):
        return ["train", "--task", "ir_vis", "--data", "data", "--resume", "train", "--threads", "1", "--deterministic"]
    shutil.rmtree("train", ignore_errors=True)
    words = [
        "train",
        "--task",
        "ir_vis",
        "--data",
        "data",
        "-o",
        "train",
        "--threads",
        "1",
        "--deterministic",
        "--device",
        "cpu",
    ]
    return [*words, *(word for setting in _TRAIN for word in ("--set", setting))]


def _look_at_run() -> None:
    from refusion_edge.network.checkpoint import read_checkpoint

    for path in Path("train").glob("step-*.safetensors"):
        read_checkpoint(path)


def _compare_runs() -> None:
    from safetensors.numpy import load_file

    found, whole = (load_file(f"{folder}/step-0000012.safetensors") for folder in ("train", "whole-train"))
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        assert np.array_equal(found[name], values), name


def _stream_words(folder: str, rate_hz: float, *words: str) -> Sequence[str]:
    shutil.rmtree(folder, ignore_errors=True)
    sources = [word for side in ("ir", "vis") for word in (f"--{side}", _CAMERA.format(side=side, rate=rate_hz))]
    return ["stream", *sources, "--network", "fast", "--threads", "1", *words, "--duration-s", str(_RECORDED_S)]


def _start_clip() -> None:
    """Press the button of the page as soon as it is there."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{_PORT}/control", b'{"record": true}', headers)
    deadline_s = time.monotonic() + _RECORDED_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=1):
            return
        time.sleep(0.02)


def _look_at_video(folder: str, writer: type) -> None:
    import av

    last_s = None
    for path in Path(folder).glob("*.*"):
        # It is there from the first frame on, and has a header from the first fragment on.
        with contextlib.suppress(av.EOFError, av.InvalidDataError), av.open(str(path)) as video:
            last_s = max((float(frame.time) for frame in video.decode(video=0) if frame.time is not None), default=None)
    begun = _given_to(VideoSink)
    assert _KILLED_NS or last_s is not None, "the video of a finished run cannot be played"
    if begun:
        first_ns = begun[0][0]
        least_ns = first_ns if last_s is None else first_ns + last_s * 1e9 + 1e6
        _note_loss(folder, *([row for row in rows if row[0] >= least_ns] for rows in (begun, _given_to(writer))))


def _look_at_recording(name: str) -> None:
    given = _given_to(Recorder), _given_to(RecordWriter)
    try:
        recording = read_recording(Path(name))
    except InputError:
        # Before the first frame there is nothing to play.
        assert not list(Path(name).rglob("000001.png")), "frames were recorded, and cannot be played"
        _note_loss(name, *given)
        return
    for number in range(len(recording.rows)):
        recording.read(number)
    assert _KILLED_NS or recording.late or recording.end is not None, "the recording of a finished run has no end"
    kept = {row[3] for row in recording.rows}
    _note_loss(name, *(rows[1 + max(at for at, row in enumerate(rows) if row[0] in kept) :] for rows in given))


if __name__ == "__main__":
    sys.exit(main())
