"""Evaluate folders of results, and engines that fuse the sources first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.archive.shards import ALL, Shard
from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, UsageError
from refusion_edge.evaluation.cases import find_cases, find_sources
from refusion_edge.evaluation.report import Report, SweepResult
from refusion_edge.evaluation.scoring import Sweep, core_count, defined_or_nan, score_cases, show_sources, sweep_cases
from refusion_edge.evaluation.statistics import mean_of_defined
from refusion_edge.evaluation.trivial import TRIVIAL, trivial_fuser
from refusion_edge.fuser import Fuser, load
from refusion_edge.images.depth import find_depths, read_pairs
from refusion_edge.images.findings import Findings
from refusion_edge.images.io import write_image
from refusion_edge.images.names import NameList
from refusion_edge.images.pairs import ImagePair, PairPaths, read_pair
from refusion_edge.images.ranges import Mask
from refusion_edge.metrics import Metric, sweep_fusion
from refusion_edge.tasks import find_task

Progress: TypeAlias = Callable[[str, int], Callable[[], None]]
"""Takes a description and a number of steps; returns a function to call after each step."""

DEFAULT_TASK = "ir_vis"


def silent(description: str, steps: int) -> Callable[[], None]:
    """Progress that is not shown."""
    return lambda: None


def evaluate(
    a: str,
    b: str,
    results: Mapping[str, str],
    metrics: Sequence[Metric],
    *,
    engines: Mapping[str, str] | None = None,
    folder: Path | None = None,
    task: str | None = None,
    partial: bool = False,
    misregistration: Sweep | None = None,
    jobs: int = 0,
    progress: Progress = silent,
    findings: Findings | None = None,
    network: str | None = None,
    trivial: bool = False,
    shard: Shard = ALL,
    split: NameList | None = None,
) -> Report:
    """Score the results of one or more methods.

    Args:
        a: Folder or glob pattern of source a (infrared, functional, near, under).
        b: The same for source b (visible, MRI, far, over).
        results: Folder or glob pattern of the fused images of each method.
        metrics: What to compute; metrics over time treat the cases, ordered by name, as frames.
        engines: Bundle, weights file or task of each method that fuses the sources first.
        folder: Folder for the results of engines; they are needed until the page of the report is rendered.
        task: Fusion task; if None, that of the engines, or else ``ir_vis``.
        partial: Whether to score the complete cases if counterparts are missing.
        misregistration: Offsets to sweep over, or None.
        jobs: Processes for scoring; 0 for one per core.
        progress: Called for every step.
        findings: Collects what was guessed or doubtful about the sources that engines fuse, which of their results have too
            little contrast for a full stretch, and how many pixels were left out of the scores.
        network: Network of the engines, or None for that of their weights, and ``refusion`` for a task.
        trivial: Whether to add max(a, b) and the average of the sources as methods, see ``refusion_edge.evaluation.trivial``.
        shard: The shard of the pairs to score; see ``refusion_edge.evaluation.shards``.
        split: The pairs to score, or their shard; None for all.

    Raises:
        UsageError: No method is given, a name occurs twice, or the tasks of the engines differ; there are more shards than
            pairs, or they are combined with a sweep.
        InputError: Files do not match or cannot be used; the message names them.
    """
    engines = engines or {}
    if not results and not engines:
        raise UsageError("there are no fused images to score", "add --fused DIR or --bundle DIR")
    rules = tuple(TRIVIAL) if trivial else ()
    twice = (results.keys() & engines.keys()) | ({*results, *engines} & {*rules})
    if twice:
        raise UsageError(f"two methods have the name '{min(twice)}'", "tell them apart with NAME=DIR")
    jobs = jobs or core_count()
    folders, in_color = dict(results), {}
    pairs, _ = find_sources(a, b, partial=partial, split=split)
    share, lead = _share(pairs, shard, metrics, partial=partial, swept=misregistration is not None)
    if engines or rules:
        if folder is None:
            raise UsageError("engines need a folder for what they fuse", "give one")
        wants_color = any(metric.convention == "vifb" for metric in metrics)
        for index, name in enumerate((*engines, *rules)):
            engine = engines.get(name)
            with _opened(name, engine, task, network) as fuser:
                task = task if engine is None else fuser.task.name
                folders[name] = str(folder / f"{index}-luma")
                fuse_pairs(
                    fuser,
                    share,
                    Path(folders[name]),
                    color=False,
                    whole=pairs,
                    done=progress(f"fusing: {name}", len(share)),
                    # All engines see the same sources.
                    of_sources=findings if index == 0 else None,
                    of_results=None if findings is None else (findings, name),
                )
                if wants_color:
                    in_color[name] = str(folder / f"{index}-color")
                    done = progress(f"fusing in color: {name}", len(share))
                    fuse_pairs(fuser, share, Path(in_color[name]), color=True, whole=pairs, done=done)

    names = None if shard.is_all else {pair.name for pair in share}
    found = find_cases(a, b, folders, in_color=in_color, partial=partial, share=names, split=split)
    chosen = find_task(task or DEFAULT_TASK)
    depths = None if shard.is_all else find_depths(pairs, chosen)
    done = progress("scoring", len(found.cases) - lead)
    values = score_cases(found.cases, metrics, task=chosen, jobs=jobs, done=done, findings=findings, depths=depths, lead=lead)
    found = replace(found, cases=found.cases[lead:])
    report = Report(chosen, found, tuple(metrics), values)
    if misregistration is None:
        return report
    fusing: dict[str, str | None] = {**engines, **dict.fromkeys(rules)}
    return replace(report, misregistration=_sweep(report, fusing, misregistration, jobs, progress, network))


def _share(
    pairs: Sequence[PairPaths], shard: Shard, metrics: Sequence[Metric], *, partial: bool, swept: bool
) -> tuple[Sequence[PairPaths], int]:
    """The pairs that a shard needs, and the number of leading ones that it does not score itself."""
    if shard.is_all:
        return pairs, 0
    shard.require_items(len(pairs))
    if swept:
        raise UsageError("a sweep over shifts cannot be divided into shards", "leave --shifts or --shard out")
    first, end = shard.bounds(len(pairs))
    over_time = any(metric.reads == "transition" for metric in metrics)
    if over_time and partial:
        raise UsageError("metrics over time need every frame of a shard", "leave --partial out, or choose other --metrics")
    lead = int(over_time and first > 0)
    return pairs[first - lead : end], lead


def _opened(name: str, engine: str | None, task: str | None, network: str | None) -> Fuser:
    """The fuser of an engine, or of the rule of this name."""
    if engine is None:
        return trivial_fuser(name, find_task(task or DEFAULT_TASK))
    return load(engine, task=task, network=network)


def _sweep(
    report: Report, engines: Mapping[str, str | None], sweep: Sweep, jobs: int, progress: Progress, network: str | None
) -> SweepResult:
    """Sweep over finished results directly, and over engines by fusing again."""
    cases, metrics = report.found.cases, report.metrics
    by_method: dict[str, NDArray[np.float64]] = {}
    finished = [method for method in report.methods if method not in engines]
    if finished:
        reduced = [replace(case, results={method: case.results[method] for method in finished}) for case in cases]
        done = progress("misregistering", len(cases))
        swept = sweep_cases(reduced, metrics, sweep, task=report.task, jobs=jobs, done=done)
        by_method = dict(zip(finished, swept, strict=True))
    pairs = [PairPaths(case.name, case.a, case.b) for case in cases]
    for name, engine in engines.items():
        with _opened(name, engine, report.task.name, network) as fuser:
            by_method[name] = sweep_fuser(fuser, pairs, metrics, sweep, progress(f"misregistering: {name}", len(pairs)))
    return SweepResult(sweep, np.stack([mean_of_defined(by_method[method], axis=0) for method in report.methods]))


def fuse_pairs(
    fuser: Fuser,
    pairs: Sequence[PairPaths],
    folder: Path,
    *,
    color: bool,
    done: Callable[[], None],
    of_sources: Findings | None = None,
    of_results: tuple[Findings, str] | None = None,
    whole: Sequence[PairPaths] | None = None,
) -> None:
    """Fuse pairs and write the results as PNG files of the same names.

    Args:
        fuser: An open fuser.
        pairs: Pairs to fuse.
        folder: Output folder; created if needed.
        color: Whether to keep the color of the sources.
        done: Called after each pair.
        of_sources: Collects what was guessed or doubtful about the sources.
        of_results: Collects what is worth saying about the results, under the name of a method.
        whole: The set that the pairs are a part of, whose bit depths they have; None if they are all of it.

    Raises:
        InputError: A pair cannot be fused; the message names it.
        OutputError: The folder cannot be written.
    """
    depths = find_depths(whole or pairs, fuser.task)
    for paths in pairs:
        pair = depths.apply(read_pair(paths))
        try:
            planes = fuser.to_planes(*pair.stills)
            output = fuser.infer(planes, color=color)
            if of_sources is not None:
                of_sources.add(pair.name, planes.remarks)
            if of_results is not None:
                findings, method = of_results
                findings.add(pair.name, (replace(r, text=f"{method}: {r.text}") for r in fuser.remarks_on(output)))
            fused = fuser.to_image(output, planes, color=color)
        except InputError as error:
            raise error.within(f"pair {pair.name}") from error
        write_image(folder / f"{paths.name}.png", fused)
        done()


def sweep_fuser(
    fuser: Fuser, pairs: Sequence[PairPaths], metrics: Sequence[Metric], misregistration: Sweep, done: Callable[[], None]
) -> NDArray[np.float64]:
    """Fuse with a displaced source a and score against the aligned sources, see ``refusion_edge.metrics.sweep_fusion``.

    Args:
        fuser: An open fuser.
        pairs: Pairs to fuse.
        metrics: What to compute.
        misregistration: Offsets to try.
        done: Called after each pair.

    Returns:
        (pairs, offsets, metrics); NaN where a metric is undefined.

    Raises:
        InputError: A pair cannot be fused; the message names it.
        UsageError: An offset is too large for an image.
    """
    rows = []
    for pair in read_pairs(pairs, fuser.task):
        try:
            rows.append(_sweep_pair(fuser, pair, metrics, misregistration))
        except InputError as error:
            raise error.within(f"pair {pair.name}") from error
        done()
    return np.stack(rows)


def _sweep_pair(fuser: Fuser, pair: ImagePair, metrics: Sequence[Metric], sweep: Sweep) -> NDArray[np.float64]:
    values: dict[Metric, list[float]] = {}
    shown = show_sources(pair, fuser.task)
    a, b = shown.a, shown.b
    # Where a source has no value, it is fused as the other one.
    if shown.invalid_a is not None:
        a = _filled(a, b, shown.invalid_a)
    if shown.invalid_b is not None:
        b = _filled(b, a, shown.invalid_b)
    for color in (False, True):
        wanted = [metric for metric in metrics if (metric.convention == "vifb") == color]
        if not wanted:
            continue

        def fuse(a: Array, b: Array, color: bool = color) -> Array:
            planes = fuser.to_planes(a, b)
            return fuser.to_image(fuser.infer(planes, color=color), planes, color=color)

        points = sweep_fusion(a, b, fuse, wanted, sweep.offsets_px, sweep.kind, invalid=shown.invalid)
        for metric in wanted:
            values[metric] = [defined_or_nan(point[metric]) for point in points]
    return np.array([values[metric] for metric in metrics]).T


def _filled(image: Array, other: Array, invalid: Mask) -> Array:
    filled = image.copy()
    gray = other if other.ndim == 2 else cv2.cvtColor(other, cv2.COLOR_RGB2GRAY)
    values = other if image.ndim == other.ndim else gray if image.ndim == 2 else gray[..., None]
    filled[invalid] = np.broadcast_to(values, image.shape)[invalid]
    return filled
