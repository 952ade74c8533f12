"""``selftest``: test every back end on this device and print a row for the table of platforms."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_json, add_overwrite

if TYPE_CHECKING:
    from refusion_edge.bundle.folder import EngineBundle
    from refusion_edge.network.forms import Precision
    from refusion_edge.selftest.checks import Check, SelfTest
    from refusion_edge.sizes import SizeRange

SUMMARY = "test every back end on this device, and print a row for the table of platforms"

_LIMIT_S = 3600.0
_FAILED, _ABSENT = 1, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``selftest``."""
    parser.epilog = (
        "Every available back end builds a small engine, which is compared with stored vectors and timed for a second, "
        "in its own process. The exit code is 1 if an available back end fails, and 3 if a requested one is not "
        "available."
    )
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="also test engines built elsewhere")
    parser.add_argument("--backends", default="", metavar="NAMES", help="back ends, separated by commas (default: all)")
    parser.add_argument("--size", metavar="HxW", help="size to time at (default: the small one of the stored vectors)")
    parser.add_argument(
        "--limit", type=float, default=_LIMIT_S, metavar="S", help="time limit per back end, in seconds (default: 3600)"
    )
    add_json(parser)
    add_overwrite(parser, "json")


def run(options: argparse.Namespace) -> int:
    """Test, then print the facts, a table and the row."""
    from refusion_edge.bench.report import now_utc
    from refusion_edge.cli.console import write_json
    from refusion_edge.errors import UsageError
    from refusion_edge.selftest.checks import SelfTest, backends_to_check, describe_device, timing_sizes, unchecked
    from refusion_edge.sizes import parse_size

    if not 0 < options.limit < float("inf"):
        raise UsageError(f"--limit {options.limit:g} is not above 0 seconds", "choose a larger limit")
    asked = [name.strip() for name in options.backends.split(",") if name.strip()]
    names = backends_to_check(asked)
    size_hw = parse_size(options.size) if options.size else None
    if options.size and size_hw is None:
        raise UsageError("'dynamic' is not a size to time at", "name one as HEIGHTxWIDTH")
    sizes_hw = timing_sizes(size_hw)
    blanks = {subject: unchecked(subject) for subject in (*names, *options.bundles)}
    found = SelfTest(now_utc(), describe_device(), _checked(blanks, sizes_hw, options.limit))
    if options.json:
        write_json(options.json, found.to_document())
    if options.json != "-":
        _print(found)
    for done in found.checks:
        sys.stderr.write(done.trace)
    if not found.passed:
        return _FAILED
    wanted = {*asked, *map(str, options.bundles)}
    return _ABSENT if any(done.outcome == "absent" for done in found.checks if done.name in wanted) else 0


def _checked(blanks: Mapping[str | Path, Check], sizes_hw: SizeRange, limit_s: float) -> tuple[Check, ...]:
    """Check every back end and bundle in its own process."""
    import tempfile
    from dataclasses import replace

    from refusion_edge.cli.console import remarks
    from refusion_edge.errors import RefusionError
    from refusion_edge.selftest.checks import check_backend, check_bundle
    from refusion_edge.selftest.subprocess import run_in_subprocess

    checks = []
    with tempfile.TemporaryDirectory(prefix="refusion-edge-") as folder:
        for subject, blank in blanks.items():
            try:
                with remarks().status(f"testing {subject}"):
                    if isinstance(subject, Path):
                        check = run_in_subprocess(check_bundle, subject, limit_s=limit_s)
                    else:
                        check = run_in_subprocess(check_backend, subject, sizes_hw, build, Path(folder), limit_s=limit_s)
            except RefusionError as error:
                check = replace(blank, outcome="failed", reason=str(error))
            checks.append(check)
    return tuple(checks)


def build(backend: str, precision: Precision, sizes_hw: SizeRange, output: Path) -> EngineBundle:
    """Build one engine; called in the process that tests it."""
    from refusion_edge.accuracy.vectors import TASK
    from refusion_edge.backends.registry import find_entry
    from refusion_edge.bundle.spec import BuildSpec
    from refusion_edge.export.build import build as build_engine

    one_hw = sizes_hw.max_hw if sizes_hw.min_hw == sizes_hw.max_hw else None
    ranged = sizes_hw if one_hw is None and find_entry(backend).takes_ranges else None
    return build_engine(BuildSpec(TASK, precision, backend, one_hw, output=output, use_cache=False, sizes_hw=ranged)).bundle


def _print(found: SelfTest) -> None:
    from refusion_edge.cli.console import output, plain_table, print_facts
    from refusion_edge.selftest.checks import HEADINGS

    facts, software = found.facts, found.facts.software
    print_facts(
        {
            "device": facts.device,
            "compute capability": facts.compute_capability,
            "device memory": facts.memory or None,
            "system": f"{facts.distribution}, {facts.system}, {facts.cores} cores",
            "JetPack": software.jetpack,
            "L4T": software.l4t,
            "driver": software.driver,
            "CUDA toolkit": software.cuda,
            "TensorRT library": software.tensorrt,
            **{f"Python's {name}": version for name, version in facts.bindings.items()},
            "Python": facts.python,
            "power mode": facts.power_mode,
        }
    )
    console = output()
    console.print()
    table = plain_table("back end", "outcome", "built (s)", "accuracy", "median (ms)", "at", "why")
    for check in found.checks:
        table.add_row(*_cells(check))
    console.print(table)
    console.print()
    console.print("For docs/platforms.md:")
    console.print(f"| {' | '.join(HEADINGS)} |")
    console.print(f"|{' --- |' * len(HEADINGS)}")
    console.print(found.row)


def _cells(check: Check) -> tuple[str, ...]:
    name = check.name if check.name == check.backend else f"{check.backend} ({check.name})"
    built = "" if check.build_s is None else f"{check.build_s:.1f}"
    accuracy = "" if check.fidelity is None else str(check.fidelity)
    latency = check.latency
    median = "" if latency is None else f"{latency.median_ms:.3g}"
    size = "" if latency is None else f"{latency.size_hw[0]}x{latency.size_hw[1]}"
    reason = check.reason
    if latency is not None and latency.graph_problem:
        reason += f"; not replayed from a recorded CUDA graph: {latency.graph_problem}"
    return f"{name} {check.precision}", check.outcome, built, accuracy, median, size, reason
