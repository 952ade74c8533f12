"""Scoring many cases on all cores."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import InputError
from refusion_edge.evaluation.cases import Case
from refusion_edge.images.depth import Depths, find_depths
from refusion_edge.images.io import read_image
from refusion_edge.images.pairs import PairPaths, read_pair
from refusion_edge.images.ranges import to_display8
from refusion_edge.metrics import Metric, score, score_transition, sweep
from refusion_edge.metrics.misregistration import Displacement
from refusion_edge.tasks import Task

# Cases handed out ahead of the workers, for each of them.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Sweep:
    """Misregistration to try: offsets of source a in pixels, and their kind."""

    offsets_px: tuple[float, ...]
    kind: Displacement


@dataclass(frozen=True, slots=True)
class _Job:
    case: Case
    previous: Case | None
    metrics: tuple[Metric, ...]
    sweep: Sweep | None
    task: Task
    depths: Depths


def core_count() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0))


def score_cases(
    cases: Sequence[Case], metrics: Sequence[Metric], *, task: Task, jobs: int, done: Callable[[], None]
) -> NDArray[np.float64]:
    """Score every method on every case.

    Args:
        cases: Cases; in chronological order if a metric compares consecutive frames.
        metrics: What to compute.
        task: Their task, which determines what the values of each source mean.
        jobs: Number of processes; 1 for this one only.
        done: Called after each case.

    Returns:
        (methods, cases, metrics); NaN where a metric is undefined.

    Raises:
        InputError: An image cannot be used; the message names it.
    """
    previous: list[Case | None] = [None] * len(cases)
    if any(metric.reads == "transition" for metric in metrics):
        previous = [None, *cases[:-1]]
    depths = _depths(cases, task)
    work = [_Job(case, before, tuple(metrics), None, task, depths) for case, before in zip(cases, previous, strict=True)]
    return np.stack(list(_run(work, jobs, done)), axis=1)


def sweep_cases(
    cases: Sequence[Case],
    metrics: Sequence[Metric],
    misregistration: Sweep,
    *,
    task: Task,
    jobs: int,
    done: Callable[[], None],
) -> NDArray[np.float64]:
    """Score every method on every case against a displaced source a, see ``refusion_edge.metrics.sweep``.

    Args:
        cases: Cases.
        metrics: What to compute.
        misregistration: Offsets to try.
        task: As in ``score_cases``.
        jobs: As in ``score_cases``.
        done: Called after each case.

    Returns:
        (methods, cases, offsets, metrics); NaN where a metric is undefined.

    Raises:
        InputError: An image cannot be used; the message names it.
        UsageError: An offset is too large for an image.
    """
    depths = _depths(cases, task)
    work = [_Job(case, None, tuple(metrics), misregistration, task, depths) for case in cases]
    return np.stack(list(_run(work, jobs, done)), axis=1)


def defined_or_nan(value: float) -> float:
    """Turn any undefined value, including infinities, into NaN."""
    return value if math.isfinite(value) else math.nan


def _run(work: Sequence[_Job], jobs: int, done: Callable[[], None]) -> Iterator[NDArray[np.float64]]:
    """Yield the results in the order of the work."""
    workers = min(jobs, len(work))
    results = map(_score_case, work) if workers <= 1 else _in_processes(work, workers)
    for result in results:
        done()
        yield result


def _in_processes(work: Sequence[_Job], workers: int) -> Iterator[NDArray[np.float64]]:
    # A fresh interpreter each: forking a process in which ONNX Runtime has threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: deque[Future[NDArray[np.float64]]] = deque()
    try:
        for job in work:
            pending.append(pool.submit(_score_case, job))
            if len(pending) > workers * _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise InputError("a worker process was killed, probably for lack of memory", "use fewer with --jobs") from error
    finally:
        # The first failure ends the run; what waits is not worth computing.
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole process group; the parent stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _score_case(job: _Job) -> NDArray[np.float64]:
    """Score one case; returns (methods, metrics) or (methods, offsets, metrics)."""
    case = job.case
    a, b = _read_sources(job, case)
    rows = []
    for method in case.results:
        try:
            rows.append(_score_method(job, a, b, method))
        except InputError as error:
            raise error.within(f"image {case.name} of {method}") from error
    return np.stack(rows)


def _score_method(job: _Job, a: Array, b: Array, method: str) -> NDArray[np.float64]:
    values: dict[Metric, NDArray[np.float64]] = {}
    for path, metrics in _by_file(job, method).items():
        fused = read_image(path)
        if job.sweep is not None:
            points = sweep(a, b, fused, metrics, job.sweep.offsets_px, job.sweep.kind)
        elif job.previous is None:
            points = [score(a, b, fused, metrics)]
        else:
            before = job.previous
            frame_before = *_read_sources(job, before), read_image(before.results[method].luma)
            points = [score_transition(frame_before, (a, b, fused), metrics)]
        for metric in metrics:
            values[metric] = np.array([defined_or_nan(point[metric]) for point in points])
    table = np.stack([values[metric] for metric in job.metrics], axis=-1)
    return table if job.sweep is not None else table[0]


def _read_sources(job: _Job, case: Case) -> tuple[Uint8Array, Uint8Array]:
    """Both sources as they are shown, from which metrics are computed."""
    pair = job.depths.apply(read_pair(PairPaths(case.name, case.a, case.b)))
    a, b = (
        to_display8(image, role, encoding=encoding)
        for image, role, encoding in zip((pair.a, pair.b), job.task.roles, pair.encodings, strict=True)
    )
    return a, b


def _depths(cases: Sequence[Case], task: Task) -> Depths:
    return find_depths([PairPaths(case.name, case.a, case.b) for case in cases], task)


def _by_file(job: _Job, method: str) -> dict[Path, list[Metric]]:
    """Which file of a result serves which metrics."""
    result = job.case.results[method]
    files: dict[Path, list[Metric]] = {}
    for metric in job.metrics:
        files.setdefault(result.color if metric.convention == "vifb" else result.luma, []).append(metric)
    return files
