"""``bench``: measure fusion latency, with numbers that are trustworthy, comparable and reproducible."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import (
    add_image_output,
    add_json,
    add_overwrite,
    add_task,
    add_threads,
    add_trust_engine,
    require_both,
)
from refusion_edge.network import NETWORK_NAMES

if TYPE_CHECKING:
    from refusion_edge.bench.comparison import Comparison
    from refusion_edge.bench.deadline import Deadline
    from refusion_edge.bench.history import Baseline, Change
    from refusion_edge.bench.limits import DeviceLimits, Limits, Rates
    from refusion_edge.bench.measurement import Row
    from refusion_edge.bench.report import Report
    from refusion_edge.bench.subjects import Subject, Wanted
    from refusion_edge.bench.timing import Plan

SUMMARY = "measure latency: stages, percentiles, comparisons, deadlines, regressions"

ALL = "all"
_WINDOWS_S, _DEADLINE_S = 3.0, 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench``."""
    parser.epilog = (
        "Measurement windows are repeated until three agree. If they never do, the table shows 'not stable' instead of a "
        "number and the exit code is 1, as it is for a missed frame rate or a regression. One engine is open at a time, two "
        "with --compare."
    )
    parser.add_argument(
        "engines", nargs="*", metavar="ENGINE", help="bundle, task or weights file; several are measured one after the other"
    )
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="measure two engines in alternation and report their ratio"
    )
    add_task(parser)
    add_trust_engine(parser)
    parser.add_argument(
        "--network",
        action="append",
        choices=(*NETWORK_NAMES, ALL),
        help="network: refusion, fast or all; repeatable: each task is measured with each one, but with --compare the first is "
        "that of A and the second that of B (default: that of the weights, or refusion)",
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="back end for tasks and weights (default: auto)")
    add_threads(parser)
    parser.add_argument("--sizes", metavar="SIZES", help="sizes HxW, separated by commas (default: the engine's, or 480x640)")
    parser.add_argument(
        "--precisions",
        metavar="NAMES",
        help="precisions in which to build tasks and weights, separated by commas (default: run them directly)",
    )
    parser.add_argument(
        "--a", metavar="FILE", help="image of source a, read in every iteration (default: a sample held in memory)"
    )
    parser.add_argument("--b", metavar="FILE", help="image of source b")
    add_image_output(parser)
    parser.add_argument("--stages", metavar="NAMES", help="stages to show, separated by commas (default: all)")
    how = parser.add_argument_group("duration")
    how.add_argument("--warmup-ms", type=_number, default=200.0, metavar="MS", help="minimum warm-up time (default: 200)")
    how.add_argument("--warmup", type=_count, default=10, metavar="N", help="minimum warm-up iterations (default: 10)")
    how.add_argument("--iterations", type=_count, default=200, metavar="N", help="minimum iterations measured (default: 200)")
    how.add_argument(
        "--seconds",
        type=_number,
        metavar="S",
        help="minimum time measured (default: 3); with --fps, the total time (default: 60)",
    )
    how.add_argument(
        "--tolerance",
        type=_number,
        default=5.0,
        metavar="PERCENT",
        help="largest difference between windows that agree (default: 5)",
    )
    how.add_argument("--windows", type=_count, default=10, metavar="N", help="windows to try before giving up (default: 10)")
    how.add_argument(
        "--loaded",
        action="store_true",
        help="measure even if other programs keep the machine busy, and compare --against a report measured under load",
    )
    how.add_argument("--no-limits", action="store_true", help="do not measure the limits of the processor and the device")
    rate = parser.add_argument_group("fixed frame rate")
    rate.add_argument(
        "--fps", type=_number, metavar="RATE", help="check whether this frame rate is sustained; reports missed frames and ages"
    )
    rate.add_argument(
        "--misses", type=_number, default=0.1, metavar="PERCENT", help="frames allowed to be dropped or late (default: 0.1)"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--against",
        metavar="FILE",
        help="compare with the JSON of an earlier run; exit code 1 for a regression, and for an earlier run that was measured "
        "under load, unless --loaded is given",
    )
    results.add_argument(
        "--threshold", type=_number, default=10.0, metavar="PERCENT", help="slowdown that counts as a regression (default: 10)"
    )
    results.add_argument(
        "--lines", metavar="FILE", help="store each measurement of a long sweep, and continue where it stopped"
    )
    add_json(parser)
    results.add_argument("--csv", metavar="FILE", help="write every stage of every measurement as CSV")
    results.add_argument("--html", metavar="FILE", help="write a self-contained page with tables and plots")
    add_overwrite(parser, "json", "csv", "html")


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the results."""
    from refusion_edge.bench.history import changes as compare_with
    from refusion_edge.bench.measurement import CPU, END_TO_END, STAGES, parse_stages
    from refusion_edge.bench.page import render_page
    from refusion_edge.cli.console import output, write_json
    from refusion_edge.files import write_atomically

    _check(options)
    stages = parse_stages(options.stages) if options.stages else (*STAGES, END_TO_END, CPU)
    with _subjects(options) as subjects:
        baseline = _baseline(options, subjects)
        report = _measure(options, subjects)
    changes = () if baseline is None else compare_with(report, baseline, options.threshold / 100)
    page = render_page(report, changes) if options.html else ""
    if options.csv:
        write_atomically(Path(options.csv), report.to_csv().encode())
    if options.html:
        write_atomically(Path(options.html), page.encode())
    if options.json:
        write_json(options.json, report.to_document())
    if options.json != "-":
        _print(report, changes, stages)
        written = [path for path in (options.csv, options.json, options.html) if path]
        output().print(
            f"\nwrote {', '.join(written)}" if written else "\nnext: add --html bench.html for plots, or --json for programs"
        )
    trusted = baseline is None or not baseline.loaded or options.loaded
    return 0 if report.passed and trusted and not any(change.is_regression for change in changes) else 1


def _check(options: argparse.Namespace) -> None:
    """Reject impossible combinations before anything is opened or measured."""
    from refusion_edge.errors import UsageError
    from refusion_edge.files import require_writable
    from refusion_edge.report.html import require_engine

    require_both(options.a, options.b, "--a and --b")
    if bool(options.engines) == bool(options.compare):
        raise UsageError(
            "there is nothing to measure", "name engines, such as bundles/NAME, or two to compare with --compare A B"
        )
    if options.a and options.sizes:
        raise UsageError("--sizes cannot be combined with --a and --b, whose images have their own size", "leave one out")
    if options.fps is not None and (options.compare or options.lines or options.against):
        raise UsageError("--fps cannot be combined with --compare, --lines or --against", "run them one after the other")
    if options.compare and (options.lines or options.against or options.precisions or options.csv):
        raise UsageError(
            "--compare cannot be combined with --lines, --against, --precisions or --csv",
            "build both engines first, and write --json",
        )
    if options.compare and ALL in (options.network or ()):
        raise UsageError("--network all does not say which network is that of A", "give --network twice, or one for both")
    if options.compare and len(options.network or ()) > 2:
        raise UsageError(
            f"--compare takes two networks, not {len(options.network)}", "give two", expected=2, got=len(options.network)
        )
    if options.compare and "," in (options.sizes or ""):
        raise UsageError(
            f"--compare takes one size, not '{options.sizes}'", "compare size by size", expected=1, got=options.sizes
        )
    for path in (options.json, options.csv, options.html, options.lines):
        if path and path != "-":
            require_writable(Path(path))
    if options.html:
        require_engine()


@contextlib.contextmanager
def _subjects(options: argparse.Namespace) -> Iterator[list[Subject]]:
    """The engines to measure; those built for the measurement live in a temporary folder."""
    import tempfile
    from dataclasses import replace

    from refusion_edge.bench.subjects import Wanted, find_subjects
    from refusion_edge.errors import UsageError
    from refusion_edge.images.pairs import PairPaths
    from refusion_edge.sizes import parse_size

    sizes_hw = []
    for text in options.sizes.split(",") if options.sizes else ():
        size_hw = parse_size(text.strip())
        if size_hw is None:
            raise UsageError("'dynamic' is not a size to measure at", "name sizes as HEIGHTxWIDTH")
        sizes_hw.append(size_hw)
    pair = PairPaths(Path(options.a).stem, Path(options.a), Path(options.b)) if options.a else None
    wanted = Wanted(
        options.task, options.backend, options.threads, tuple(dict.fromkeys(sizes_hw)), pair,
        color=not options.gray, output_range=options.output_range,
    )  # fmt: skip
    origins = [(origin, replace(wanted, network=network)) for origin, network in _networks(options)]
    if not options.precisions:
        yield [subject for origin, one in origins for subject in find_subjects(origin, one)]
        return
    with tempfile.TemporaryDirectory(prefix="refusion-edge-") as folder:
        yield _built(options, origins, Path(folder))


def _networks(options: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """Each engine to measure with its network; None for that of its file, or the default one of a task."""
    from refusion_edge.network.weights import shipped_tasks
    from refusion_edge.tasks import TASKS

    asked: Sequence[str | None] = list(dict.fromkeys(options.network or ())) or [None]
    if options.compare:
        # In turn, so that one network counts for both.
        yield from zip(options.compare, (asked[0], asked[-1]), strict=True)
        return
    for origin in options.engines:
        if ALL not in asked:
            yield from ((origin, network) for network in asked)
        elif origin in TASKS:
            yield from ((origin, network) for network in NETWORK_NAMES if origin in shipped_tasks(network))
        else:
            yield origin, None


def _built(options: argparse.Namespace, origins: Sequence[tuple[str, Wanted]], folder: Path) -> list[Subject]:
    from dataclasses import replace

    from refusion_edge.bench.subjects import find_subjects
    from refusion_edge.bundle.spec import BuildSpec
    from refusion_edge.cli.console import remarks
    from refusion_edge.errors import UsageError
    from refusion_edge.export.build import build
    from refusion_edge.network.forms import PRECISIONS

    names = {precision: precision for precision in PRECISIONS}
    subjects: list[Subject] = []
    for origin, wanted in origins:
        if Path(origin).is_dir():
            raise UsageError(
                f"--precisions builds engines from tasks and weights, but {origin} is a bundle, which has one precision",
                "leave one out",
            )
        for plain in find_subjects(origin, replace(wanted, backend="auto")):
            for text in options.precisions.split(","):
                precision = names.get(text.strip())
                if precision is None:
                    raise UsageError(
                        f"there is no precision '{text.strip()}'",
                        f"choose from {', '.join(PRECISIONS)}",
                        expected=tuple(PRECISIONS),
                        got=text.strip(),
                    )
                one = plain.identity
                target = folder / f"{len(subjects)}"
                weights = Path(origin) if Path(origin).is_file() else None
                spec = BuildSpec(
                    one.task, precision, options.backend, one.size_hw, weights=weights, output=target, network=one.network
                )
                with remarks().status(f"building {origin} {precision} {one.size_text}"):
                    build(spec)
                subjects += find_subjects(str(target), replace(wanted, sizes_hw=(), backend="auto"), name=origin)
    return subjects


def _baseline(options: argparse.Namespace, subjects: Sequence[Subject]) -> Baseline | None:
    from refusion_edge.bench.history import check_comparable, read_baseline
    from refusion_edge.bench.report import describe_machine
    from refusion_edge.cli.console import remarks

    if not options.against:
        return None
    baseline = read_baseline(Path(options.against))
    check_comparable(baseline, [subject.identity for subject in subjects], asdict(describe_machine()))
    if baseline.loaded:
        outcome = "it is compared anyway" if options.loaded else "the exit code will be 1 unless --loaded allows it"
        remarks().print(
            f"Warning: {options.against} was measured while other programs kept the machine busy, so its times may be too long "
            f"and hide a regression; {outcome}"
        )
    return baseline


def _measure(options: argparse.Namespace, subjects: list[Subject]) -> Report:
    from refusion_edge.backends.registry import BACKENDS
    from refusion_edge.bench.comparison import compare
    from refusion_edge.bench.report import Report, describe_machine, describe_versions, now_utc
    from refusion_edge.bench.subjects import require_comparable
    from refusion_edge.bench.timing import SystemClock, read_load, require_room

    clock, plan, started = SystemClock(), _plan(options), now_utc()
    if options.compare:
        require_comparable(subjects)
    load_before = read_load(clock)
    if not options.loaded:
        require_room(load_before)
    versions = describe_versions({subject.identity.backend for subject in subjects})
    limits, device_limits = _limits(options, subjects)
    rows: tuple[Row, ...] = ()
    comparison: Comparison | None = None
    deadlines: tuple[Deadline, ...] = ()
    if options.compare:
        comparison = compare(subjects[0], subjects[1], plan, clock)
    elif options.fps is not None:
        deadlines = _hold(options, subjects, plan)
    else:
        rows = _sweep(options, subjects, plan, versions, lambda backend: device_limits if BACKENDS[backend].on_gpu else limits)
    return Report(
        started, describe_machine(), versions, clock.name, plan, load_before, read_load(clock), limits, device_limits, rows,
        comparison, deadlines,
    )  # fmt: skip


def _limits(options: argparse.Namespace, subjects: Sequence[Subject]) -> tuple[Limits | None, DeviceLimits | None]:
    """Limits of the hardware the subjects run on: the processor, a CUDA device, or both."""
    from refusion_edge.backends.registry import BACKENDS
    from refusion_edge.bench.limits import measure_device_limits, measure_limits
    from refusion_edge.cli.console import remarks
    from refusion_edge.cuda import open_driver
    from refusion_edge.errors import BackendError

    if options.no_limits or options.compare or options.fps is not None:
        return None, None
    on_gpu = {BACKENDS[subject.identity.backend].on_gpu for subject in subjects}
    device_limits = None
    if True in on_gpu:
        try:
            with open_driver() as driver:
                device_limits = measure_device_limits(driver)
        except BackendError as error:
            # The times matter most; a device without memory for the copies can still be timed.
            remarks().print(f"limits of the device not measured: {error}")
    return measure_limits() if False in on_gpu else None, device_limits


def _sweep(
    options: argparse.Namespace,
    subjects: Sequence[Subject],
    plan: Plan,
    versions: dict[str, str],
    limits_of: Callable[[str], Rates | None],
) -> tuple[Row, ...]:
    from refusion_edge.bench.history import SweepLog
    from refusion_edge.bench.measurement import measure
    from refusion_edge.bench.report import describe_machine
    from refusion_edge.bench.timing import SystemClock
    from refusion_edge.cli.console import progress_bar, remarks

    configuration = {
        "machine": asdict(describe_machine()),
        "versions": versions,
        "plan": asdict(plan),
        "engines": {subject.identity.label: subject.files for subject in subjects},
        "backend": options.backend,
        "threads": options.threads,
        "images": [options.a, options.b],
    }
    rows: list[Row] = []
    with SweepLog(Path(options.lines), configuration) if options.lines else contextlib.nullcontext() as log:
        if log is not None and log.rows:
            remarks().print(f"{options.lines}: {len(log.rows)} of {len(subjects)} are already measured")
        with progress_bar() as progress:
            for subject in progress.track(subjects, description="measuring"):
                row = None if log is None else log.rows.get(subject.identity)
                if row is None:
                    row = measure(subject, plan, SystemClock(), limits_of(subject.identity.backend))
                    if log is not None:
                        log.add(row)
                rows.append(row)
    return tuple(rows)


def _hold(options: argparse.Namespace, subjects: Sequence[Subject], plan: Plan) -> tuple[Deadline, ...]:
    from dataclasses import replace

    from refusion_edge.bench.deadline import hold
    from refusion_edge.bench.measurement import open_pipeline
    from refusion_edge.bench.timing import SystemClock
    from refusion_edge.cli.console import remarks

    clock = SystemClock()
    seconds = _DEADLINE_S if options.seconds is None else options.seconds
    found = []
    for subject in subjects:
        what = f"{subject.identity.label} at {options.fps:g} fps for {seconds:g} s"
        with remarks().status(what), open_pipeline(subject, clock) as pipeline:
            allowed = options.misses / 100
            held = hold(
                pipeline.run, subject.identity, fps=options.fps, seconds=seconds, allowed_share=allowed, plan=plan, clock=clock
            )
            found.append(replace(held, graph_problem=pipeline.graph_problem))
        subject.check_unchanged()
    return tuple(found)


def _plan(options: argparse.Namespace) -> Plan:
    from refusion_edge.bench.timing import Plan

    seconds = _WINDOWS_S if options.seconds is None or options.fps is not None else options.seconds
    return Plan(options.warmup_ms, options.warmup, options.iterations, seconds, options.tolerance / 100, options.windows)


def _print(report: Report, changes: Sequence[Change], stages: Sequence[str]) -> None:
    from refusion_edge.bench import page
    from refusion_edge.cli.console import output

    console = output()
    machine = report.machine
    device = f", {machine.accelerator}" if machine.accelerator else ""
    console.print(f"{machine.processor}, {machine.cores} cores{device}; {report.clock}; {report.started}")
    console.print(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    if text := page.load_text(report):
        console.print(text)
    if report.rows:
        _print_rows(report, stages)
    if report.comparison is not None:
        _print_comparison(report.comparison, stages)
    for text in page.graph_texts(report):
        console.print(text)
    for advice in report.recommendations:
        console.print(f"\nINT8: {advice}")
    for deadline in report.deadlines:
        console.print(f"\n{page.deadline_text(deadline)}")
        _print_ages(deadline)
    if changes:
        _print_changes(changes)


def _print_rows(report: Report, stages: Sequence[str]) -> None:
    from refusion_edge.bench import page
    from refusion_edge.bench.statistics import PERCENTILES, percentile_name
    from refusion_edge.cli.console import output, plain_table

    console = output()
    figures = ("median", *map(percentile_name, PERCENTILES), "max")
    console.print("\nend to end, ms")
    table = plain_table("engine", "back end", *figures, "pairs/s", "last/first", "peak MiB", "energy/pair", "of roofline")
    for row in report.rows:
        times = [page.stage_text(row, "end_to_end", figure) for figure in figures]
        table.add_row(
            row.identity.label, row.identity.backend, *times, page.throughput_text(row), page.drift_text(row),
            page.memory_text(row), page.energy_text(row), page.roofline_text(row),
        )  # fmt: skip
    console.print(table)
    console.print("\nstages, median ms")
    table = plain_table("engine", *stages)
    for row in report.rows:
        table.add_row(row.identity.label, *(page.stage_text(row, stage) for stage in stages))
    console.print(table)
    console.print()
    for row in report.rows:
        state = ", ".join(f"{name} {text}" for name, text in page.state_texts(row.after).items())
        console.print(f"{row.identity.label}: {page.stability_text(row)}; {state}")
    console.print(page.limits_text(report))


def _print_comparison(found: Comparison, stages: Sequence[str]) -> None:
    from refusion_edge.bench import page
    from refusion_edge.bench.measurement import END_TO_END
    from refusion_edge.bench.report import NOT_STABLE, stage_order
    from refusion_edge.bench.statistics import verdict
    from refusion_edge.cli.console import output, plain_table

    console = output()
    if found.ratios is None or found.stages is None:
        ratios = ", ".join(f"{value:.2f}" for value in found.windows)
        console.print(f"\n{NOT_STABLE}: {len(found.windows)} windows, with the ratios {ratios}")
        return
    first, second = _names(found)
    table = plain_table("stage", f"{first} (ms)", f"{second} (ms)", "ratio", "95% interval")
    for stage in stage_order(found.ratios):
        if stage not in stages:
            continue
        ratio, (one, other) = found.ratios[stage], found.stages[stage]
        interval = page.ABSENT if ratio.low is None or ratio.high is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
        medians = page.time_text(one.median_ms), page.time_text(other.median_ms)
        table.add_row(stage, *medians, f"{ratio.value:.2f}", interval)
    console.print(f"\n{found.turns} turns, end-to-end medians: {verdict(first, second, found.ratios[END_TO_END])}")
    console.print(table)


def _names(found: Comparison) -> tuple[str, str]:
    """Names that distinguish the two."""
    if found.first.label == found.second.label:
        return f"A ({found.first.label})", f"B ({found.second.label})"
    return found.first.label, found.second.label


def _print_ages(deadline: Deadline) -> None:
    from refusion_edge.bench import page
    from refusion_edge.cli.console import output, plain_table

    ages = deadline.ages
    table = plain_table("age, ms", "median", *ages.percentiles_ms, "max")
    table.add_row("whole run", *map(page.time_text, (ages.median_ms, *ages.percentiles_ms.values(), ages.max_ms)))
    output().print(table)
    table = plain_table("minute", "frames", "missed", "median age, ms", "largest")
    for number, minute in enumerate(deadline.minutes, start=1):
        largest = page.time_text(minute.max_age_ms)
        table.add_row(f"{number}", f"{minute.arrived}", f"{minute.missed}", page.time_text(minute.median_age_ms), largest)
    output().print(table)


def _print_changes(changes: Sequence[Change]) -> None:
    from refusion_edge.bench import page
    from refusion_edge.cli.console import output, plain_table

    table = plain_table("engine", "stage", "before (ms)", "now (ms)", "ratio")
    for change in changes:
        times = page.time_text(change.before_ms), page.time_text(change.now_ms)
        table.add_row(change.identity.label, change.stage, *times, page.change_text(change))
    output().print("\ncompared with the earlier report")
    output().print(table)


def _number(text: str) -> float:
    """Parse a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return value


def _count(text: str) -> int:
    """Parse a whole number from 1 to a million."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to 1000000")
    return int(text)
