"""``train``: train the network for a task on a folder of pairs."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_network, add_split, add_threads, read_split
from refusion_edge.errors import CheckpointError
from refusion_edge.tasks import TASKS

if TYPE_CHECKING:
    from refusion_edge.train.collection import Entry
    from refusion_edge.train.session import Console, Request
    from refusion_edge.train.views import Teacher

SUMMARY = "train the fusion network on a folder of pairs"

_INTERRUPTED = 130
# The bar counts thousandths of the run, which ends at a step or a time, whichever comes first.
_BAR_STEPS = 1000
# Without a terminal, as in a log.
_LINE_EVERY_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    folders = "; ".join(f"{task.name}: {task.folder_a}/ {task.folder_b}/" for task in TASKS.values())
    parser.epilog = (
        f"The folder holds one folder per source; the two files of a pair share their stem ({folders}). For multi_focus, pairs "
        "can also be made from all-in-focus images in a folder sharp/, in addition to near/ and far/ or instead of them. To "
        "train with several processes: torchrun --nproc-per-node N -m refusion_edge train ..."
    )
    parser.add_argument("--task", required=True, choices=TASKS, help="fusion task")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="folder that holds the folders of both sources")
    parser.add_argument("--a", metavar="NAME", help="folder of source a below --data (default: the task's)")
    parser.add_argument("--b", metavar="NAME", help="folder of source b below --data (default: the task's)")
    parser.add_argument("--layout", metavar="NAME", help="layout of the data set: msrs, m3fd, llvip, ... (default: detected)")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PREFIX",
        help="leave out files whose names start with PREFIX; repeatable",
    )
    add_split(parser, "train on")
    parser.add_argument(
        "--val", type=Path, metavar="PATH",
        help="validate on the pairs that this text file names, as in --split, or on those of another folder like --data "
        "(default: hold back a share of the pairs)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", metavar="NAME", help="preset: 'default', 'paper' or a TOML file in the same format (default: 'default')"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="K=V",
        help="override a setting: section.key=value; repeatable",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/TASK, or runs/TASK-NETWORK with --network)",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="fine-tune these weights: safetensors, official .pth, or a task for the weights of the package",
    )
    start.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in this folder")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="continue the run in --output if it has a checkpoint, otherwise start it; for commands that torchrun or a job "
        "queue repeats",
    )
    add_network(parser)
    parser.add_argument(
        "--teacher",
        metavar="WEIGHTS",
        help="also learn from the output of these weights: a weights file, or a task for the weights of the package",
    )
    parser.add_argument("--max-minutes", type=float, metavar="M", help="stop after this time; the schedule adapts to it")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default: auto)")
    parser.add_argument("--deterministic", action="store_true", help="use deterministic algorithms only")
    parser.add_argument(
        "--probe", action="store_true", help="measure training steps at several crop and batch sizes, recommend one, and exit"
    )
    add_threads(parser, "PyTorch")


def run(options: argparse.Namespace) -> int:
    """Train, then print where the weights are and a command to try next."""
    from refusion_edge.machine import keep_freed_memory, require

    torch = require("torch", "train", "training")
    from refusion_edge.train.session import Request

    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    request = Request(
        task=options.task,
        data=options.data,
        output=options.output
        or Path("runs") / (options.task if options.network is None else f"{options.task}-{options.network}"),
        preset=options.preset,
        assignments=tuple(options.assignments),
        folder_a=options.a,
        folder_b=options.b,
        layout=options.layout,
        exclude=tuple(options.exclude),
        split=read_split(options),
        val=options.val,
        init=_initial(options.init, options.network),
        resume=options.resume,
        auto_resume=options.auto_resume,
        max_minutes=options.max_minutes,
        device=options.device,
        deterministic=options.deterministic,
        network=options.network,
    )
    with contextlib.ExitStack() as stack:
        if options.teacher is not None:
            request = replace(request, teacher=stack.enter_context(_teacher(options.teacher, options.threads)))
        return _run(request, probe=options.probe)


def _run(request: Request, *, probe: bool) -> int:
    from refusion_edge.cli.console import output, remarks
    from refusion_edge.train.session import Console, run_session

    with _progress() as (files, progress):
        console = Console(remarks().print, files, progress)
        if probe:
            return _probe(request, console)
        outcome = run_session(request, console)
    folder = outcome.checkpoint.parent
    if not outcome.is_first:
        return 0 if outcome.finished else _INTERRUPTED
    if not outcome.finished:
        remarks().print(f"stopped by {outcome.reason} after step {outcome.step}; wrote {outcome.checkpoint}")
        same = shlex.join(_same_data(request))
        output().print(f"next: refusion-edge train --task {request.task} {same} --resume {folder}")
        return _INTERRUPTED
    weights = folder / f"{request.task}.safetensors"
    output().print(f"wrote {weights} after {outcome.step} steps; best by validation: {folder / 'best.safetensors'}")
    output().print(f"next: refusion-edge fuse A.png B.png -o fused.png --weights {weights}")
    return 0


def _same_data(request: Request) -> list[str]:
    """The options without which a resumed run would learn from something else."""
    given = [
        ("--data", request.data),
        ("--a", request.folder_a),
        ("--b", request.folder_b),
        ("--layout", request.layout),
        *(("--exclude", prefix) for prefix in request.exclude),
        ("--split", request.split and request.split.path),
        ("--val", request.val),
        ("--teacher", request.teacher and request.teacher.name),
    ]
    return [word for option, value in given if value is not None for word in (option, str(value))]


def _initial(weights: str | None, network: str | None) -> Path | None:
    if weights not in TASKS:
        return None if weights is None else Path(weights)
    from refusion_edge.network.weights import weights_path

    return weights_path(weights) if network is None else weights_path(weights, network)


@contextmanager
def _teacher(weights: str, threads: int) -> Iterator[Teacher]:
    from refusion_edge.files import read_file
    from refusion_edge.fuser import load
    from refusion_edge.network.checkpoint import MOST_BYTES, parse_checkpoint
    from refusion_edge.network.weights import weights_path
    from refusion_edge.train.views import Teacher

    path = weights_path(weights) if weights in TASKS else Path(weights)
    data = read_file(path, kind="weights file", most_bytes=MOST_BYTES, error=CheckpointError)
    checkpoint = parse_checkpoint(data, path)
    task = checkpoint.task or next(iter(TASKS))  # the same planes for every task, so it does not matter here
    with load(path, task=task, threads=threads) as fuser:
        yield Teacher(weights, checkpoint.task, hashlib.sha256(data).hexdigest(), fuser.backend.fuse)


def _probe(request: Request, console: Console) -> int:
    from refusion_edge.cli.console import output, plain_table
    from refusion_edge.train.collection import PairCollection
    from refusion_edge.train.loop import build_networks
    from refusion_edge.train.probe import probe, propose_shape, shapes_for
    from refusion_edge.train.session import choose_device, session_settings, survey_for

    device = choose_device(request.device)
    settings = session_settings(request, None, device)
    found = survey_for(request, settings, console)
    shapes = shapes_for(device, max(settings.run.crop_px, settings.run.late_crop_px))
    collection = PairCollection(found.entries, report=console.remark)
    timings = probe(settings, build_networks(settings), collection, device, shapes)
    table = plain_table("crop (px)", "pairs", "update (s)", "meta cycle (s)", f"{settings.run.steps} steps (min)", "peak (MiB)")
    for timing in timings:
        peak = "" if timing.peak_mib is None else f"{timing.peak_mib:.0f}"
        table.add_row(
            str(timing.crop_px), str(timing.batch), f"{timing.update_s:.3f}", f"{timing.cycle_s:.3f}",
            f"{timing.run_s(settings) / 60:.1f}", peak,
        )  # fmt: skip
    best = propose_shape(timings, settings, 60 * (request.max_minutes or 60))
    output().print(table)
    output().print(
        f"proposed: --set run.crop_px={best.crop_px} --set run.late_crop_px={best.crop_px} --set run.batch={best.batch} "
        f"(about {best.run_s(settings) / 60:.0f} min)"
    )
    return 0


@contextmanager
def _progress() -> Iterator[tuple[Callable[[Iterable[Entry]], Iterable[Entry]], Callable[[float, str], None]]]:
    from refusion_edge.cli.console import progress_bar, remarks

    with progress_bar() as bars:
        training = bars.add_task("training", total=_BAR_STEPS, visible=False)
        printed_s = time.monotonic()

        def files(entries: Iterable[Entry]) -> Iterable[Entry]:
            return bars.track(list(entries), description="checking files")

        def progress(share: float, state: str) -> None:
            nonlocal printed_s
            if not bars.console.is_terminal and time.monotonic() - printed_s >= _LINE_EVERY_S:
                printed_s = time.monotonic()
                remarks().print(f"training, {state} ({share:.0%} done)")
            bars.update(training, completed=round(share * _BAR_STEPS), description=f"training, {state}", visible=True)

        yield files, progress
