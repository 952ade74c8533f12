"""Kill commands at random moments, and check that no incomplete file is read as complete and that all can be finished.

Run as ``python -m benchmarks.kills --kills 200 --seed 1`` from the repository's root. Victims: ``build``, ``fuse --shard``,
``train``, ``stream --record`` with and without a limit, ``stream`` into each kind of video, and ``eval --shard``. Every kill is
SIGKILL, at a moment drawn uniformly from the time that the command takes undisturbed. The modules that it needs are imported
before, so that the kills hit its work and two hundred of them take minutes. After each kill, the files on the disk are read as
a user would read them. At the end, every victim is finished and compared with a run that was never killed: bundles, images,
manifests, scores, and the bits of the trained weights.
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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from refusion_edge.archive.manifest import Manifest, sha256_of
from refusion_edge.archive.shards import ALL
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.bundle.manifest import MANIFEST
from refusion_edge.cli import main as run_command
from refusion_edge.errors import InputError
from refusion_edge.evaluation.shards import read_shard
from refusion_edge.images.io import read_image, write_image
from refusion_edge.stream.outputs.recording import read_recording

_PAIRS = 6
_RECORDED_S = 2
_CAMERA = "test://{side}?width=160&height=120&rate=30"
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
    parser.add_argument("--victims", default="build,fuse,eval,train,record,ring,mp4,mkv", help="which (default: all)")
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
        victims = [victim for victim in _victims() if victim.name in wanted]
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
        for name, lags_s in _LAGS_S.items():
            print(f"{name}: at most {max(lags_s):.3f} s (median {np.median(lags_s):.3f}) between the last frame and the kill")
    return 0


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
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1) if moment_s is None else (0, 1, 2):
            os.dup2(null, descriptor)
        code = 70
        try:
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
            _KILLED_NS[:] = [time.monotonic_ns()]
            _, status = os.waitpid(child, 0)
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


_IMPORTED = Path("imported")
_LAGS_S: dict[str, list[float]] = {}
_KILLED_NS: list[int] = []


def _victims() -> Iterator[Victim]:
    yield Victim("build", _build_words, _look_at_bundle, lambda: _same("build", MANIFEST, "weights.safetensors", "model.onnx"))
    yield Victim("fuse", _fuse_words, _look_at_images, _compare_images)
    yield Victim("eval", _eval_words, _look_at_scores, lambda: _same("eval", "scores.json"))
    yield Victim("train", _train_words, _look_at_run, _compare_runs)
    yield Victim("record", lambda: _record_words("record"), lambda: _look_at_recording("record"), lambda: None)
    yield Victim(
        "ring", lambda: _record_words("ring", "--record-limit", "1MB"), lambda: _look_at_recording("ring"), lambda: None
    )

    for suffix in ("mp4", "mkv"):
        yield Victim(suffix, partial(_video_words, suffix), partial(_look_at_video, suffix), lambda: None)


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


def _record_words(name: str, *limit: str, output: str = "null://") -> Sequence[str]:
    shutil.rmtree(name, ignore_errors=True)
    sources = [word for side in ("ir", "vis") for word in (f"--{side}", _CAMERA.format(side=side))]
    words = ["stream", *sources, "--network", "fast", "--threads", "1", "-o", output, "--record", name]
    return [*words, *limit, "--duration-s", str(_RECORDED_S)]


def _video_words(suffix: str) -> Sequence[str]:
    """Into a video in a folder of its own, and a recording whose first frame tells when the video began."""
    shutil.rmtree(f"{suffix}-raw", ignore_errors=True)
    shutil.rmtree(suffix, ignore_errors=True)
    return _record_words(f"{suffix}-raw", output=f"{suffix}/video.{suffix}")


def _look_at_video(suffix: str) -> None:
    import av

    try:
        recording = read_recording(Path(f"{suffix}-raw"))
    except InputError:
        return  # before the first frame
    last_s = 0.0
    # The file is there from the first fused frame on, and has a header from the first fragment on.
    with contextlib.suppress(FileNotFoundError, av.EOFError, av.InvalidDataError), av.open(f"{suffix}/video.{suffix}") as video:
        last_s = max((float(frame.time) for frame in video.decode(video=0) if frame.time is not None), default=0.0)
    if recording.end is None:
        _note_lag(suffix, recording.rows[0][4] + round(last_s * 1e9))
    else:
        assert last_s > 0, "the video of a finished run cannot be played"


def _note_lag(name: str, last_ns: int) -> None:
    if _KILLED_NS:
        _LAGS_S.setdefault(name, []).append((_KILLED_NS[0] - last_ns) / 1e9)


def _look_at_recording(name: str) -> None:
    try:
        recording = read_recording(Path(name))
    except InputError:
        # Before the first frame there is nothing to play.
        assert not list(Path(name).rglob("000001.png")), "frames were recorded, and cannot be played"
        return
    for number in range(len(recording.rows)):
        recording.read(number)
    if recording.end is None:
        _note_lag(name, recording.rows[-1][4])


if __name__ == "__main__":
    sys.exit(main())
