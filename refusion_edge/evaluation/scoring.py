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
from refusion_edge.images.findings import Findings
from refusion_edge.images.io import read_image
from refusion_edge.images.pairs import ImagePair, PairPaths, read_pair
from refusion_edge.images.ranges import Mask, Remark, find_invalid, join_invalid, to_display
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


@dataclass(frozen=True, slots=True)
class _Scored:
    """Scores of one case, (methods, metrics) or (methods, offsets, metrics), and the number of pixels left out."""

    values: NDArray[np.float64]
    left_out: int


@dataclass(frozen=True, slots=True)
class Shown:
    """The sources of a case as they are shown, from which metrics are computed.

    Attributes:
        a: Source a, (H, W) or (H, W, 3) uint8.
        b: Source b, likewise.
        invalid_a: (H, W), True where source a has no value, or None.
        invalid_b: The same for source b.
    """

    a: Uint8Array
    b: Uint8Array
    invalid_a: Mask | None
    invalid_b: Mask | None

    @property
    def invalid(self) -> Mask | None:
        """(H, W), True where one of them has no value, or None."""
        return join_invalid(self.invalid_a, self.invalid_b)


def show_sources(pair: ImagePair, task: Task) -> Shown:
    """Bring both sources to the range of display.

    Raises:
        InputError: A source has no value anywhere, or values out of range; the message names it.
    """
    shown = []
    for name, image, role, encoding in zip("ab", (pair.a, pair.b), task.roles, pair.encodings, strict=True):
        try:
            shown.append(to_display(image, role, encoding=encoding))
        except InputError as error:
            raise error.within(f"image {pair.name}, source {name}") from error
    a, b = shown
    return Shown(a.levels, b.levels, a.invalid, b.invalid)


def core_count() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0))


def score_cases(
    cases: Sequence[Case],
    metrics: Sequence[Metric],
    *,
    task: Task,
    jobs: int,
    done: Callable[[], None],
    findings: Findings | None = None,
    depths: Depths | None = None,
    lead: int = 0,
) -> NDArray[np.float64]:
    """Score every method on every case.

    Args:
        cases: Cases; in chronological order if a metric compares consecutive frames.
        metrics: What to compute.
        task: Their task, which determines what the values of each source mean.
        jobs: Number of processes; 1 for this one only.
        done: Called after each case.
        findings: Collects how many pixels were left out because they have no value.
        depths: Bit depths of the set that the cases are a part of; None if they are all of it.
        lead: Number of cases at the beginning that are not scored, but precede a scored one.

    Returns:
        (methods, cases - lead, metrics); NaN where a metric is undefined.

    Raises:
        InputError: An image cannot be used; the message names it.
    """
    previous: list[Case | None] = [None] * len(cases)
    if any(metric.reads == "transition" for metric in metrics):
        previous = [None, *cases[:-1]]
    depths = _depths(cases, task) if depths is None else depths
    work = [_Job(case, before, tuple(metrics), None, task, depths) for case, before in zip(cases, previous, strict=True)][lead:]
    scored = list(_run(work, jobs, done))
    for case, result in zip(cases[lead:], scored, strict=True):
        if findings is not None and result.left_out:
            findings.add(
                case.name, [Remark("left out of the scores: pixels without a value in a source or result", result.left_out)]
            )
    return np.stack([result.values for result in scored], axis=1)


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
    return np.stack([result.values for result in _run(work, jobs, done)], axis=1)


def defined_or_nan(value: float) -> float:
    """Turn any undefined value, including infinities, into NaN."""
    return value if math.isfinite(value) else math.nan


def _run(work: Sequence[_Job], jobs: int, done: Callable[[], None]) -> Iterator[_Scored]:
    """Yield the results in the order of the work."""
    workers = min(jobs, len(work))
    results = map(_score_case, work) if workers <= 1 else _in_processes(work, workers)
    for result in results:
        done()
        yield result


def _in_processes(work: Sequence[_Job], workers: int) -> Iterator[_Scored]:
    # A fresh interpreter each: forking a process in which ONNX Runtime has threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: deque[Future[_Scored]] = deque()
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


def _score_case(job: _Job) -> _Scored:
    sources = _read_sources(job, job.case)
    files = {method: _by_file(job, method) for method in job.case.results}
    results = {path: read_image(path) for of_method in files.values() for path in of_method}
    # All methods are compared on the same pixels.
    invalid = sources.invalid
    for fused in results.values():
        if fused.shape[:2] == sources.a.shape[:2]:
            invalid = join_invalid(invalid, find_invalid(fused, isolated=False))
    rows = []
    for method, of_method in files.items():
        values: dict[Metric, NDArray[np.float64]] = {}
        try:
            for path, metrics in of_method.items():
                points = _points(job, sources, results[path], metrics, method, invalid)
                values.update({metric: np.array([defined_or_nan(point[metric]) for point in points]) for metric in metrics})
        except InputError as error:
            raise error.within(f"image {job.case.name} of {method}") from error
        table = np.stack([values[metric] for metric in job.metrics], axis=-1)
        rows.append(table if job.sweep is not None else table[0])
    return _Scored(np.stack(rows), 0 if invalid is None else int(np.count_nonzero(invalid)))


def _points(
    job: _Job, sources: Shown, fused: Array, metrics: Sequence[Metric], method: str, invalid: Mask | None
) -> list[dict[Metric, float]]:
    """Scores of one result, one for each offset of the sweep."""
    if job.sweep is not None:
        return sweep(sources.a, sources.b, fused, metrics, job.sweep.offsets_px, job.sweep.kind, invalid=invalid)
    if job.previous is None:
        return [score(sources.a, sources.b, fused, metrics, invalid=invalid)]
    before = _read_sources(job, job.previous)
    frame_before = before.a, before.b, read_image(job.previous.results[method].luma)
    frame = sources.a, sources.b, fused
    return [score_transition(frame_before, frame, metrics, invalid=invalid, previous_invalid=before.invalid)]


def _read_sources(job: _Job, case: Case) -> Shown:
    return show_sources(job.depths.apply(read_pair(PairPaths(case.name, case.a, case.b))), job.task)


def _depths(cases: Sequence[Case], task: Task) -> Depths:
    return find_depths([PairPaths(case.name, case.a, case.b) for case in cases], task)


def _by_file(job: _Job, method: str) -> dict[Path, list[Metric]]:
    """Which file of a result serves which metrics."""
    result = job.case.results[method]
    files: dict[Path, list[Metric]] = {}
    for metric in job.metrics:
        files.setdefault(result.color if metric.convention == "vifb" else result.luma, []).append(metric)
    return files
