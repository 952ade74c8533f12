"""``fuse``: fuse two images, two folders or two patterns of images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.cli.options import (
    add_image_output,
    add_json,
    add_layout,
    add_network,
    add_overwrite,
    add_rebuild,
    add_shard,
    add_split,
    add_task,
    add_threads,
    add_trust_engine,
    nonempty,
    number_between,
    pixel_range,
    read_split,
    require_free,
    resolve_layout,
)

if TYPE_CHECKING:
    from refusion_edge.archive.fusing import FusePlan
    from refusion_edge.errors import RefusionError
    from refusion_edge.fuser import Fuser
    from refusion_edge.images.findings import Findings
    from refusion_edge.images.luma import Planes
    from refusion_edge.images.pairs import PairList, PairPaths

SUMMARY = "fuse two images, or two folders or patterns matched by file stem"
SCHEMA = "refusion-edge/fuse/1"

_FORMATS = ("png", "jpg", "tiff")
_MOST_FAILURES = 20
_MOST_REPORT_BYTES = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuse``."""
    parser.epilog = (
        "Source a is the infrared, functional, near-focused or underexposed image, source b the visible, MRI, far-focused "
        "or overexposed one. Quote patterns ('ir/*.png') so that the shell does not expand them."
    )
    parser.add_argument("a", type=nonempty, help="source a: file, folder or quoted glob pattern")
    parser.add_argument(
        "b", type=nonempty, help="source b, of the same kind as a; for a known data set, give its folder as both"
    )
    parser.add_argument(
        "-o", "--output", required=True, type=nonempty, help="file to write, or a folder if the sources are folders or patterns"
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--bundle", type=nonempty, metavar="DIR", help="engine bundle from 'build' (default: the weights of the task in fp32)"
    )
    weights.add_argument("--weights", type=nonempty, metavar="FILE", help="weights file: safetensors or official .pth")
    add_task(parser)
    add_trust_engine(parser)
    add_network(parser)
    parser.add_argument("--backend", default="auto", metavar="NAME", help="back end, see 'doctor' (default: auto)")
    add_rebuild(parser)
    add_image_output(parser)
    parser.add_argument(
        "--format", choices=_FORMATS, default="png", help="format of the files in an output folder (default: png)"
    )
    for source in "ab":
        parser.add_argument(
            f"--{source}-range", type=pixel_range, metavar="LOW:HIGH",
            help=f"values to map to black and white in source {source}; auto: the image's own range; full: the full scale of "
            "its type (default: depends on the source and the file)",
        )  # fmt: skip
    add_layout(parser)
    add_split(parser, "fuse")
    parser.add_argument(
        "--max-pixels", type=_pixels, default=100_000_000, metavar="N",
        help="refuse images with more pixels than this; a small file can decode to gigabytes (default: 100 million)",
    )  # fmt: skip
    add_shard(
        parser,
        "fuse only shard I of N (0/N to N-1/N) and keep a manifest in the output folder; existing results that are intact are "
        "not fused again (default: all pairs, without a manifest)",
    )
    parser.add_argument(
        "--cluster", choices=("ray",),
        help="fuse on a Ray cluster: the one at $RAY_ADDRESS, otherwise a local one on this machine's cores; keeps a manifest, "
        "as --shard 0/1 does",
    )  # fmt: skip
    add_threads(parser)
    add_json(parser)
    add_overwrite(parser, "json")


@dataclass(slots=True)
class _Log:
    """What happened to the pairs of one run: results by name, and failures."""

    written: list[dict[str, Any]] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[tuple[str, RefusionError]] = field(default_factory=list)

    def to_json(self, found: PairList, remarks: list[dict[str, object]]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "written": self.written,
            "verified": self.verified,
            "failed": [{"name": name, "problem": error.problem, "remedy": error.remedy} for name, error in self.failures],
            "left_out": [str(path) for path in (*found.only_a, *found.only_b, *found.ignored)],
            "remarks": [*remarks, *({"text": text} for text in (*found.remarks(), *self.remarks))],
        }


def run(options: argparse.Namespace) -> int:
    """Fuse and write; a pair of a folder that cannot be fused is reported, and the others are still fused."""
    from refusion_edge.cli.console import output, remarks, write_json
    from refusion_edge.errors import InputError, UsageError
    from refusion_edge.images.findings import Findings
    from refusion_edge.images.io import check_writable_suffix, write_image
    from refusion_edge.images.pairs import find_pairs, is_collection

    options.a, options.b = resolve_layout(options.a, options.b, options.task, options.layout)
    many = is_collection(options.a)
    split = read_split(options)
    if split is not None and not many:
        raise UsageError("--split needs folders, but the sources are two files", "leave it out")
    found = find_pairs(options.a, options.b)
    if split is not None:
        found = split.select_pairs(found)
    if not many:
        check_writable_suffix(Path(options.output))
    elif Path(options.output).is_file():
        raise UsageError(f"the sources are folders, but --output {options.output} is a file", "name a folder")
    _refuse_overwriting(options, [_target(options, paths, many) for paths in found.pairs], found.pairs)
    plan = _plan(options)
    findings, log = Findings(), _Log()
    if not many and (options.shard is not None or options.cluster is not None):
        raise UsageError("--shard and --cluster need folders, but the sources are two files", "leave these options out")
    if many:
        code = _fuse_folder(options, plan, found, findings, log)
        if options.json:
            write_json(options.json, log.to_json(found, findings.to_json()))
        return code
    # Read the images first, so that a wrong path fails before an engine is loaded.
    pair = plan.read(found.pairs[0])
    with plan.open() as fuser:
        try:
            fused, planes = plan.fuse(fuser, pair)
        except InputError as error:
            raise error.within(f"{options.a} and {options.b}") from error
    write_image(options.output, fused)
    findings.add(pair.name, planes.remarks)
    for line in findings.lines():
        remarks().print(line)
    _say_choice(options, fuser)
    if options.json:
        log.written.append(_entry(found.pairs[0], Path(options.output), planes))
        write_json(options.json, log.to_json(found, findings.to_json()))
    if options.json != "-":
        kind = "color" if fused.ndim == 3 else "grayscale"
        output().print(f"wrote {options.output} ({fused.shape[0]}x{fused.shape[1]}, {kind})")
    return 0


def _plan(options: argparse.Namespace) -> FusePlan:
    from refusion_edge.archive.fusing import FusePlan

    source = options.bundle or options.weights or options.task or "ir_vis"
    return FusePlan(
        source,
        options.task if source != options.task else None,
        options.network,
        options.backend,
        options.threads,
        options.output_range,
        options.gray,
        options.a_range,
        options.b_range,
        options.max_pixels,
    )


def _entry(paths: PairPaths, target: Path, planes: Planes) -> dict[str, Any]:
    """What became of one pair, for JSON."""
    invalid = [0 if mask is None else int(mask.sum()) for mask in (planes.only_b, planes.only_a)]
    sources = [
        {"file": str(path), "low": scale.low, "high": scale.high, "range_from": scale.origin, "invalid_pixels": count}
        for path, scale, count in zip((paths.a, paths.b), planes.scales, invalid, strict=True)
    ]
    return {"name": paths.name, "file": str(target), "sources": sources}


def _say_choice(options: argparse.Namespace, fuser: Fuser) -> None:
    """Print which back end auto chose and why; a bundle names its own."""
    from refusion_edge.cli.console import output, remarks

    if fuser.choice is not None and fuser.choice.automatic:
        (remarks if options.json == "-" else output)().print(f"Back end: {fuser.choice.reason}")


def _fuse_folder(options: argparse.Namespace, plan: FusePlan, found: PairList, findings: Findings, log: _Log) -> int:
    """Fuse all pairs, or a shard of them."""
    from refusion_edge.archive.shards import ALL
    from refusion_edge.cli.console import output, remarks
    from refusion_edge.errors import UsageError
    from refusion_edge.images.depth import find_depths

    if options.shard is not None and options.cluster is not None:
        raise UsageError("--cluster distributes the pairs itself and takes no --shard", "leave --shard out")
    shard = options.shard or ALL
    pairs = shard.of(found.pairs)
    if not pairs:
        log.remarks.append(f"shard {shard} is empty, because there are {shard.count} shards for {len(found.pairs)} pairs")
    with plan.open() as fuser:
        # Of all pairs: a shard is fused like the whole.
        depths = find_depths(found.pairs, fuser.task)
        plan = replace(plan, depths=depths)
        _say_choice(options, fuser)
        if options.cluster is None and options.shard is None:
            _fuse_all(options, plan, fuser, pairs, findings, log)
        elif options.cluster is None:
            _fuse_shard(options, plan, fuser, pairs, findings, log)
    if options.cluster is not None:
        _fuse_on_cluster(options, plan, pairs, log)
    for line in (*found.remarks(), *log.remarks, *depths.remarks, *findings.lines()):
        remarks().print(line)
    for name, failure in log.failures[:_MOST_FAILURES]:
        remarks().print(f"refusion-edge: error: pair {name}: {failure}")
    if len(log.failures) > _MOST_FAILURES:
        remarks().print(f"refusion-edge: error: {len(log.failures) - _MOST_FAILURES} more pairs failed; --json FILE lists them")
    if options.json != "-":
        there = f"; {len(log.verified)} already existed and are intact" if log.verified else ""
        share = f" of shard {options.shard}" if options.shard is not None and not options.shard.is_all else ""
        output().print(f"wrote {len(log.written)} of {len(pairs)} fused images{share} to {options.output}{there}")
    return log.failures[0][1].exit_code if log.failures else 0


def _fuse_all(
    options: argparse.Namespace, plan: FusePlan, fuser: Fuser, pairs: Sequence[PairPaths], findings: Findings, log: _Log
) -> None:
    from refusion_edge.images.io import write_image

    def one(paths: PairPaths, target: Path) -> None:
        fused, planes = plan.fuse(fuser, plan.read(paths))
        write_image(target, fused)
        findings.add(paths.name, planes.remarks)
        log.written.append(_entry(paths, target, planes))

    _each(options, pairs, one, log)


def _fuse_shard(
    options: argparse.Namespace, plan: FusePlan, fuser: Fuser, pairs: Sequence[PairPaths], findings: Findings, log: _Log
) -> None:
    from refusion_edge.archive.fusing import fuse_once
    from refusion_edge.archive.manifest import Manifest

    settings = plan.digest(fuser.backend)
    with Manifest(Path(options.output), options.shard) as manifest:
        if not pairs:
            manifest.add_empty()

        def one(paths: PairPaths, target: Path) -> None:
            outcome = fuse_once(plan, fuser, paths, target, settings, manifest.entries.get(paths.name))
            manifest.add(outcome.entry)
            if outcome.planes is None:
                log.verified.append(paths.name)
            else:
                findings.add(paths.name, outcome.planes.remarks)
                log.written.append(_entry(paths, target, outcome.planes))

        _each(options, pairs, one, log)


def _each(options: argparse.Namespace, pairs: Sequence[PairPaths], one: Callable[[PairPaths, Path], None], log: _Log) -> None:
    """Do something for every pair; if one fails, the others are still done."""
    from refusion_edge.cli.console import progress_bar
    from refusion_edge.errors import BackendError, InputError, OutputError
    from refusion_edge.files import output_error

    with progress_bar() as progress:
        for paths in progress.track(pairs, description="fusing"):
            target = _target(options, paths, many=True)
            try:
                one(paths, target)
            except (BackendError, InputError, OutputError) as error:
                log.failures.append((paths.name, error))
            except OSError as error:
                log.failures.append((paths.name, output_error(target, error)))


def _fuse_on_cluster(options: argparse.Namespace, plan: FusePlan, pairs: Sequence[PairPaths], log: _Log) -> None:
    from refusion_edge.archive.cluster import Task, fuse_on_ray
    from refusion_edge.archive.manifest import Manifest
    from refusion_edge.archive.shards import ALL
    from refusion_edge.cli.console import progress_bar
    from refusion_edge.images.pairs import PairPaths as Absolute
    from refusion_edge.tasks import TASKS

    # Workers have another working folder.
    plan = replace(plan, source=plan.source if plan.source in TASKS else str(Path(plan.source).absolute()))
    with Manifest(Path(options.output), ALL) as manifest, progress_bar() as progress:
        tasks = [
            Task(
                Absolute(paths.name, paths.a.absolute(), paths.b.absolute()),
                _target(options, paths, many=True).absolute(),
                manifest.entries.get(paths.name),
            )
            for paths in pairs
        ]
        by_name = {task.paths.name: task for task in tasks}
        for done in progress.track(fuse_on_ray(plan, tasks), total=len(tasks), description="fusing on the cluster"):
            if done.error is not None:
                log.failures.append((done.name, done.error))
            if done.entry is None:
                continue
            manifest.add(done.entry)
            if done.fused:
                log.written.append({"name": done.name, "file": str(by_name[done.name].target)})
            else:
                log.verified.append(done.name)


def _target(options: argparse.Namespace, paths: PairPaths, many: bool) -> Path:
    return Path(options.output) / f"{paths.name}.{options.format}" if many else Path(options.output)


def _refuse_overwriting(options: argparse.Namespace, targets: list[Path], pairs: Sequence[PairPaths]) -> None:
    from refusion_edge.archive.manifest import has_manifest
    from refusion_edge.errors import UsageError

    # Not Path.resolve, which raises for a link to itself.
    sources = {os.path.realpath(path) for paths in pairs for path in (paths.a, paths.b)}
    for target in targets:
        if os.path.realpath(target) in sources:
            raise UsageError(f"the result would overwrite the source {target}", "choose another --output")
    if options.shard or options.cluster:
        if options.json not in (None, "-") and not _is_report(Path(options.json)):
            require_free(Path(options.json), overwrite=options.overwrite)
        if has_manifest(Path(options.output)):
            return  # it says which results are intact, and the others are of a run that was killed
    require_free(*targets, overwrite=options.overwrite, instead="choose another --output")


def _is_report(path: Path) -> bool:
    """Whether a file is a report of ``fuse``, which a repeated shard may replace."""
    from refusion_edge.errors import InputError
    from refusion_edge.files import read_file

    try:
        return SCHEMA.rpartition("/")[0].encode() in read_file(path, kind="report", most_bytes=_MOST_REPORT_BYTES)
    except InputError:
        return False


def _pixels(text: str) -> int:
    return int(number_between(text, 64, 1e10))
