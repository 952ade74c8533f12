"""Reports of the shards of an archive, and their merged report, which has the same numbers as a single run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge._version import __version__
from refusion_edge.archive.fusing import FusePlan
from refusion_edge.archive.manifest import sha256_of
from refusion_edge.archive.shards import MOST_SHARDS, Shard
from refusion_edge.documents import parse_json, shown, typed
from refusion_edge.errors import InputError
from refusion_edge.evaluation.cases import Case, CaseList, Result, find_cases, find_sources
from refusion_edge.evaluation.report import Report
from refusion_edge.files import read_file
from refusion_edge.images.depth import find_depths
from refusion_edge.images.names import NameList
from refusion_edge.metrics import CONVENTIONS, Metric, find_metric, metrics_of
from refusion_edge.tasks import TASKS, find_task

SCHEMA = "refusion-edge/evaluation-shard/1"
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ShardOfReport:
    """The report of one shard.

    Attributes:
        schema: ``SCHEMA``.
        index: Index of the shard.
        count: Number of shards.
        total: Number of pairs in all.
        settings: Digest of all that the values of every shard depend on, see ``settings_of``.
        inputs: Digest of everything that the values of this shard depend on.
        task: Name of the task.
        metrics: Metrics with their conventions.
        methods: Names of the methods.
        images: Names of the images of the shard, in order.
        files: Of each image, the files of source a, of source b, and of each method for luma and for color.
        left_out: Files without a counterpart.
        values: (methods, images, metrics); None where undefined.
    """

    schema: str
    index: int
    count: int
    total: int
    settings: str
    inputs: str
    task: str
    metrics: list[str]
    methods: list[str]
    images: list[str]
    files: list[list[str]]
    left_out: list[str]
    values: list[list[list[float | None]]]


def settings_of(
    a: str,
    b: str,
    metrics: Sequence[Metric],
    *,
    methods: Sequence[str],
    engines: Mapping[str, str],
    facts: Mapping[str, Any],
    partial: bool,
    split: NameList | None = None,
) -> str:
    """Digest of what the values of all shards depend on: version, metrics, engines, and the bit depths of the whole set.

    Args:
        a: Source a, as ``evaluate`` takes it.
        b: Source b.
        metrics: What is computed.
        methods: Names of methods with results.
        engines: Engines of methods.
        facts: Other options.
        partial: See ``evaluate``.
        split: See ``evaluate``.

    Raises:
        InputError: Files do not match, or cannot be read.
    """
    pairs, _ = find_sources(a, b, partial=partial, split=split)
    task = facts.get("task")
    # The task of an engine is known once it is open.
    tasks = [find_task(task)] if task is not None else list(TASKS.values())
    depths = [find_depths(pairs, each).bits for each in tasks]
    digests = {name: FusePlan(source, network=facts.get("network")).digest(None) for name, source in engines.items()}
    names = None if split is None else sorted(pair.name for pair in pairs)
    keys = [metric.key for metric in metrics]
    return _digest([__version__, keys, list(methods), digests, dict(facts), len(pairs), depths, names])


def inputs_of(
    a: str,
    b: str,
    results: Mapping[str, str],
    shard: Shard,
    settings: str,
    *,
    partial: bool,
    split: NameList | None = None,
) -> str:
    """Digest of everything that the values of a shard depend on: the settings, and all its files.

    Args:
        a: Source a, as ``evaluate`` takes it.
        b: Source b.
        results: Results of methods.
        shard: The shard.
        settings: ``settings_of``.
        partial: See ``evaluate``.
        split: See ``evaluate``.

    Raises:
        InputError: Files do not match, or cannot be read.
        UsageError: There are more shards than pairs.
    """
    pairs, _ = find_sources(a, b, partial=partial, split=split)
    shard.require_items(len(pairs))
    first, end = shard.bounds(len(pairs))
    # Metrics over time also read the image before the first one.
    names = {pair.name for pair in pairs[max(0, first - 1) : end]}
    files = [path for pair in pairs if pair.name in names for path in (pair.a, pair.b)]
    if results:
        found = find_cases(a, b, results, partial=partial, share=names, split=split)
        files += [path for case in found.cases for result in case.results.values() for path in (result.luma, result.color)]
    try:
        hashes = [[path.name, sha256_of(path)] for path in files]
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", "check the path and its permissions") from error
    return _digest([settings, str(shard), hashes])


def to_shard(report: Report, shard: Shard, total: int, settings: str, inputs: str) -> dict[str, Any]:
    """The report of a shard, as plain values.

    Args:
        report: Its report.
        shard: The shard.
        total: Number of pairs in all.
        settings: ``settings_of``.
        inputs: ``inputs_of``.
    """
    cases = report.found.cases
    return {
        "schema": SCHEMA,
        "index": shard.index,
        "count": shard.count,
        "total": total,
        "settings": settings,
        "inputs": inputs,
        "task": report.task.name,
        "metrics": [metric.key for metric in report.metrics],
        "methods": list(report.methods),
        "images": [case.name for case in cases],
        "files": [[*map(str, (case.a, case.b)), *_files(case)] for case in cases],
        "left_out": [str(path) for path in report.found.left_out],
        "values": [
            [[None if math.isnan(value) else float(value) for value in row] for row in method] for method in report.values
        ],
    }  # fmt: skip


def read_shard(path: Path) -> ShardOfReport:
    """Read the report of a shard.

    Raises:
        InputError: It cannot be read, or is not such a report.
    """
    data = parse_json(read_file(path, kind="report of a shard", most_bytes=_MOST_BYTES), str(path))
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{path} is not the report of a shard", "make it with 'eval --shard I/N --json'", expected=SCHEMA, got=schema
        )
    found = typed(ShardOfReport, data, str(path))
    known = {metric.key for name in CONVENTIONS for metric in metrics_of(name)}
    for name, names in ((found.task, TASKS), *((metric, known) for metric in found.metrics)):
        if name not in names:
            raise InputError(f"{path} names {shown(name)}, which this version does not know", "make it again", got=name)
    shape = (len(found.methods), len(found.images), len(found.metrics))
    rows = [row for method in found.values for row in method]
    if (
        not 0 <= found.index < found.count <= MOST_SHARDS
        or (len(found.values), *{len(method) for method in found.values}, *{len(row) for row in rows}) != shape
        or [len(files) for files in found.files] != [2 + 2 * len(found.methods)] * len(found.images)
    ):
        raise InputError(f"{path} is inconsistent: the sizes of its tables and lists differ", "make it again", expected=shape)
    return found


def is_shard(path: Path) -> bool:
    """Whether a file is the report of a shard, even a damaged one or one of another version, which a later run may replace."""
    try:
        return SCHEMA.rpartition("/")[0].encode() in read_file(path, kind="report of a shard", most_bytes=_MOST_BYTES)
    except InputError:
        return False


def is_done(path: Path, inputs: str) -> bool:
    """Whether the report of a shard exists, is complete, and comes from the same inputs."""
    try:
        return read_shard(path).inputs == inputs
    except InputError:
        return False


def merge(paths: Sequence[Path]) -> Report:
    """Merge the reports of all shards.

    Args:
        paths: Their files, in any order.

    Raises:
        InputError: A file cannot be used, or the shards come from different evaluations, are missing, or occur twice.
    """
    shards = sorted(((read_shard(path), path) for path in paths), key=lambda each: each[0].index)
    first, _ = shards[0]
    for shard, path in shards:
        for name in ("task", "metrics", "methods", "count", "total", "settings"):
            if getattr(shard, name) != getattr(first, name):
                raise InputError(
                    f"{path} and {shards[0][1]} come from different evaluations: their {name} differ",
                    "merge shards of one run",
                    expected=getattr(first, name), got=getattr(shard, name),
                )  # fmt: skip
    indices = [shard.index for shard, _ in shards]
    if indices != list(range(first.count)):
        missing = sorted(set(range(first.count)) - set(indices))
        problem = f"{len(missing)} of {first.count} shards are missing" if missing else "a shard is given twice"
        raise InputError(problem, "give each shard once", expected=list(range(first.count)), got=indices)
    cases = tuple(
        Case(name, Path(files[0]), Path(files[1]), dict(zip(first.methods, _results(files[2:]), strict=True)))
        for shard, _ in shards
        for name, files in zip(shard.images, shard.files, strict=True)
    )
    if len({case.name for case in cases}) != len(cases):
        raise InputError("an image is in two shards", "score the shards again, all from the same folders")
    values = np.concatenate([np.array(shard.values, np.float64) for shard, _ in shards], axis=1)
    found = CaseList(tuple(first.methods), cases, tuple(map(Path, first.left_out)))
    return Report(find_task(first.task), found, tuple(map(find_metric, first.metrics)), values)


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _files(case: Case) -> list[str]:
    return [str(path) for each in case.results.values() for path in (each.luma, each.color)]


def _results(files: Sequence[str]) -> list[Result]:
    return [Result(Path(luma), Path(color)) for luma, color in zip(files[::2], files[1::2], strict=True)]
