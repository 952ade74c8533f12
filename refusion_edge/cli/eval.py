"""``eval``: score folders of fused images, rank methods and write reports."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.cli.options import (
    add_json,
    add_layout,
    add_network,
    add_overwrite,
    add_shard,
    add_split,
    add_task,
    add_trust_engine,
    nonempty,
    read_split,
    require_free,
    resolve_layout,
    thread_count,
)

if TYPE_CHECKING:
    from refusion_edge.evaluation.report import Report
    from refusion_edge.evaluation.scoring import Sweep
    from refusion_edge.images.names import NameList
    from refusion_edge.metrics import Metric

SUMMARY = "score fused images with established metrics, and rank methods"

_MARKS = {1: "¹", 2: "²", 3: "³"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``eval``."""
    parser.epilog = (
        "Files are matched by stem; the results of a method may share a suffix, as in name_METHOD.png. A method's folder can "
        "be a quoted pattern ('results/*_GFF.jpg'). Metrics are named NAME or CONVENTION:NAME; --list shows them all."
    )
    parser.add_argument("--ir", "--a", dest="a", metavar="DIR", help="source a: infrared, functional, near or underexposed")
    parser.add_argument("--vis", "--b", dest="b", metavar="DIR", help="source b: visible, MRI, far or overexposed")
    add_layout(parser)
    add_split(parser, "score")
    parser.add_argument(
        "--fused",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="results of a method; repeatable, to rank several methods",
    )
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="[NAME=]BUNDLE",
        help="fuse the sources with this bundle, weights file or task, and score the results; repeatable",
    )  # fmt: skip
    add_task(parser)
    add_trust_engine(parser)
    add_network(parser)
    parser.add_argument(
        "--no-trivial", action="store_true", help="leave out the rows for max(a, b) and for the average of the sources"
    )
    parser.add_argument(
        "--convention", default="evaluator", metavar="NAMES", help="conventions, separated by commas (default: evaluator)"
    )
    parser.add_argument("--metrics", metavar="NAMES", help="metrics, separated by commas (default: all of the convention)")
    parser.add_argument(
        "--partial", action="store_true", help="skip files without a counterpart instead of stopping with an error"
    )
    parser.add_argument("--shifts", metavar="PIXELS", help="also sweep over displacements of source a, such as 0,1,2,4,8")
    parser.add_argument(
        "--shift-kind", choices=("shift", "skew"), default="shift",
        help="shift: move all of source a; skew: shear it, its last row to the right and its first row to the left "
        "(default: shift)",
    )  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", help="write the values per image as CSV")
    parser.add_argument("--latex", metavar="FILE", help="write the means as LaTeX tables, with the three best values marked")
    parser.add_argument(
        "--markdown", metavar="FILE", help="write the means as Markdown tables, with the three best values marked"
    )
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page with tables, plots and montages")
    add_json(parser)
    parser.add_argument(
        "--jobs", type=thread_count, default=0, metavar="N", help="processes for scoring (default: one per core)"
    )
    add_shard(
        parser,
        "score only shard I of N (0/N to N-1/N) and write it to --json; an existing result is kept if nothing has changed "
        "(default: all pairs)",
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        type=nonempty,
        metavar="FILE",
        help="combine the shards in these files into the report of a single run",
    )
    add_overwrite(parser, "json", "csv", "latex", "markdown", "html")
    parser.add_argument("--list", action="store_true", help="list all metrics with convention, range and direction, and exit")


def run(options: argparse.Namespace) -> int:
    """Score, then print and write the results."""
    import tempfile

    from refusion_edge.cli.console import remarks
    from refusion_edge.errors import UsageError
    from refusion_edge.report.html import require_engine

    if options.list:
        _print_metrics()
        return 0
    if options.merge:
        return _merge(options)
    if options.a is None or options.b is None:
        raise UsageError("the folders of both sources are needed", "add --ir DIR and --vis DIR (or --a and --b)")
    options.a, options.b = resolve_layout(options.a, options.b, options.task, options.layout)
    metrics, sweep = _metrics(options), _sweep(options)
    if options.html:
        # Fail before the work starts.
        require_engine()
    split = read_split(options)
    settings, inputs = _inputs(options, metrics, split) if options.shard is not None else ("", "")
    if options.shard is not None and _is_done(options, inputs):
        return 0

    from refusion_edge.archive.shards import ALL
    from refusion_edge.evaluation import evaluate
    from refusion_edge.evaluation.cases import find_sources
    from refusion_edge.evaluation.page import render_page
    from refusion_edge.evaluation.shards import to_shard
    from refusion_edge.images.findings import Findings

    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="refusion-edge-") as folder, _progress() as progress:
        report = evaluate(
            options.a,
            options.b,
            _named(options.fused, "--fused"),
            metrics,
            engines=_named(options.bundle, "--bundle"),
            folder=Path(folder),
            task=options.task,
            partial=options.partial,
            misregistration=sweep,
            jobs=options.jobs,
            progress=progress,
            findings=findings,
            network=options.network,
            trivial=not options.no_trivial,
            shard=options.shard or ALL,
            split=split,
        )
        page = render_page(report) if options.html else ""
    for line in findings.lines():
        remarks().print(line)
    document = {**report.to_document(), "remarks": findings.to_json()}
    if options.shard is not None:
        total = len(find_sources(options.a, options.b, partial=options.partial, split=split)[0])
        document = to_shard(report, options.shard, total, settings, inputs)
    _write(options, report, page, document)
    return 0


def _write(options: argparse.Namespace, report: Report, page: str, document: dict[str, Any]) -> None:
    from refusion_edge.cli.console import output, remarks, write_json
    from refusion_edge.evaluation.tables import to_latex, to_markdown
    from refusion_edge.files import write_atomically

    if options.shard is None and report.caution:
        remarks().print(report.caution)
    if options.csv:
        write_atomically(Path(options.csv), report.to_csv().encode(errors="backslashreplace"))
    for path, render in ((options.latex, to_latex), (options.markdown, to_markdown)):
        if path:
            write_atomically(Path(path), render(report).encode(errors="backslashreplace"))
    if options.html:
        write_atomically(Path(options.html), page.encode(errors="backslashreplace"))
    if options.json:
        write_json(options.json, document)
    if options.json != "-":
        _print_report(report)
        files = (options.csv, options.json, options.latex, options.markdown, options.html)
        written = [path for path in files if path]
        output().print(f"\nwrote {', '.join(written)}" if written else "\nnext: add --html report.html for plots and montages")


def _inputs(options: argparse.Namespace, metrics: Sequence[Metric], split: NameList | None) -> tuple[str, str]:
    from refusion_edge.errors import UsageError
    from refusion_edge.evaluation.shards import inputs_of, settings_of

    if options.json is None or options.csv or options.html or options.latex or options.markdown:
        raise UsageError(
            "a shard is written only to --json, for --merge", "add --json FILE, and leave the other output files out"
        )
    facts = {name: getattr(options, name) for name in ("task", "network", "partial", "no_trivial")}
    results, partial = _named(options.fused, "--fused"), options.partial
    settings = settings_of(
        options.a, options.b, metrics, methods=list(results), engines=_named(options.bundle, "--bundle"), facts=facts,
        partial=partial, split=split,
    )  # fmt: skip
    return settings, inputs_of(options.a, options.b, results, options.shard, settings, partial=partial, split=split)


def _is_done(options: argparse.Namespace, inputs: str) -> bool:
    from refusion_edge.cli.console import output
    from refusion_edge.evaluation.shards import is_done, is_shard

    if options.json == "-":
        return False
    path = Path(options.json)
    if not is_shard(path):
        require_free(path, overwrite=options.overwrite)
    done = is_done(path, inputs)
    if done:
        output().print(f"shard {options.shard} is already in {options.json}, and nothing that it depends on has changed")
    return done


def _merge(options: argparse.Namespace) -> int:
    from refusion_edge.evaluation.page import render_page
    from refusion_edge.evaluation.shards import merge
    from refusion_edge.report.html import require_engine

    if options.html:
        require_engine()
    report = merge([Path(name) for name in options.merge])
    _write(options, report, render_page(report) if options.html else "", report.to_document())
    return 0


def _metrics(options: argparse.Namespace) -> tuple[Metric, ...]:
    from refusion_edge.metrics import find_metric, metrics_of

    conventions = [name.strip() for name in options.convention.split(",")]
    of_conventions = [metric for convention in conventions for metric in metrics_of(convention)]
    if options.metrics is None:
        return tuple(dict.fromkeys(of_conventions))
    return tuple(dict.fromkeys(find_metric(name.strip(), conventions[0]) for name in options.metrics.split(",")))


def _sweep(options: argparse.Namespace) -> Sweep | None:
    from refusion_edge.errors import UsageError
    from refusion_edge.evaluation.scoring import Sweep

    if options.shifts is None:
        return None
    try:
        offsets = sorted({float(text) for text in options.shifts.split(",")})
    except ValueError:
        raise UsageError(
            f"--shifts takes numbers of pixels separated by commas, not '{options.shifts}'", "write 0,1,2"
        ) from None
    return Sweep(tuple(offsets), options.shift_kind)


def _named(sources: list[str], option: str) -> dict[str, str]:
    """Map method names to folders; a method without a name takes that of its folder."""
    from refusion_edge.errors import UsageError

    named: dict[str, str] = {}
    for source in sources:
        name, separator, path = source.partition("=")
        if not separator or Path(source).exists():
            name, path = Path(source).name, source
        if not name or not path:
            raise UsageError(f"'{source}' does not name its method", f"write {option} NAME=DIR")
        if name in named:
            raise UsageError(f"two methods have the name '{name}'", f"tell them apart with {option} NAME=DIR")
        named[name] = path
    return named


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    from refusion_edge.cli.console import progress_bar

    with progress_bar() as bars:

        def start(description: str, steps: int) -> Callable[[], None]:
            task = bars.add_task(description, total=steps)
            return lambda: bars.advance(task)

        yield start


def _print_metrics() -> None:
    from refusion_edge.cli.console import output, plain_table
    from refusion_edge.metrics import CONVENTIONS, metrics_of

    table = plain_table("metric", "convention", "what", "better", "range", "paper")
    for convention in CONVENTIONS:
        for metric in metrics_of(convention):
            bounds = f"{metric.bounds} {metric.unit}".rstrip()
            table.add_row(metric.name, convention, metric.title, metric.direction, bounds, metric.paper)
    output().print(table)


def _print_report(report: Report) -> None:
    from refusion_edge.cli.console import output, plain_table
    from refusion_edge.evaluation.report import UNDEFINED

    console = output()
    for path in report.found.left_out:
        console.print(f"left out, no counterpart: {path}")
    count = len(report.found.cases)
    console.print(f"{report.task.title}: {count} image{'' if count == 1 else 's'}, means over images")
    several = len(report.methods) > 1
    for convention in report.conventions:
        metrics = report.metrics_in(convention)
        console.print(f"\nconvention {convention}")
        table = plain_table("method", *(f"{metric.name} {'↑' if metric.direction == 'higher' else '↓'}" for metric in metrics))
        for method, _ in report.ranking():
            table.add_row(method, *(_mean(report, method, metric, several) for metric in metrics))
        console.print(table)
    if any(report.summary(method, metric).undefined for method in report.methods for metric in report.metrics):
        console.print(f"\n* {UNDEFINED} on some images, which are not included")
        if several:
            console.print("  a method that is undefined on an image where another one is not ranks last in that metric")
    if several:
        _print_comparison(report)
    if report.misregistration is not None:
        _print_misregistration(report)


def _mean(report: Report, method: str, metric: Metric, marked: bool) -> str:
    from refusion_edge.evaluation.report import format_value

    summary, rank = report.summary(method, metric), report.ranks(metric)[method]
    mark = _MARKS.get(rank, "") if marked and rank is not None else ""
    return format_value(summary.mean) + ("*" if summary.undefined and summary.images else "") + mark


def _print_comparison(report: Report) -> None:
    from refusion_edge.cli.console import output, plain_table
    from refusion_edge.evaluation.report import UNDEFINED, format_difference

    console = output()
    ranking = report.ranking()
    console.print("\nmean rank over all metrics")
    table = plain_table("method", "mean rank")
    for method, rank in ranking:
        table.add_row(method, UNDEFINED if rank is None else f"{rank:.2f}")
    console.print(table)
    leader, *others = (method for method, _ in ranking)
    console.print(f"\n{leader} minus the others, with 95% intervals from a paired bootstrap; ! marks intervals that exclude 0")
    table = plain_table("metric", *others)
    for metric in report.metrics:
        cells = []
        for other in others:
            found = report.difference(leader, other, metric)
            text = UNDEFINED if found.mean is None else format_difference(found.mean)
            if found.low is not None and found.high is not None:
                text += f" ({format_difference(found.low)} to {format_difference(found.high)}){' !' if found.distinct else ''}"
            cells.append(text)
        table.add_row(metric.label, *cells)
    console.print(table)


def _print_misregistration(report: Report) -> None:
    from refusion_edge.cli.console import output, plain_table
    from refusion_edge.evaluation.report import format_value

    if report.misregistration is None:
        return
    sweep, means = report.misregistration.sweep, report.misregistration.means
    output().print(f"\nmeans against {sweep.kind} of source a in pixels")
    table = plain_table("metric", "method", *(f"{offset:g}" for offset in sweep.offsets_px))
    for column, metric in enumerate(report.metrics):
        for method, rows in zip(report.methods, means, strict=True):
            table.add_row(metric.label, method, *(format_value(float(value)) for value in rows[:, column]))
    output().print(table)
