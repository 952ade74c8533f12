"""Forms of the result: JSON as documented, there and back, CSV, lines, the page, and against an earlier one."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from refusion_edge.bench.comparison import compare
from refusion_edge.bench.deadline import hold
from refusion_edge.bench.history import SweepLog, changes, check_comparable, read_baseline, read_rows
from refusion_edge.bench.limits import DeviceLimits, Limits
from refusion_edge.bench.measurement import Row, measure
from refusion_edge.bench.page import graph_texts, render_page
from refusion_edge.bench.report import Report, describe_machine, describe_versions, now_utc, row_document, row_from_document
from refusion_edge.bench.sensors import MachineState
from refusion_edge.bench.subjects import Subject
from refusion_edge.bench.timing import Load
from refusion_edge.errors import InputError, OutputError, RefusionError, UsageError
from tests.bench.conftest import QUICK, MadeUpClock, subject_maker
from tests.conftest import ROOT, one_sentence
from tests.raising import raises

MakeSubject = Callable[..., Subject]
# Fields whose names vary, by the path above them.
OPEN = re.compile(r"(versions|files|stages|ratios|clocks_mhz|temperatures_c)$")


@pytest.fixture
def make_row(clock: MadeUpClock, make_subject: MakeSubject) -> Callable[..., Row]:
    """Make a row: ``make_row(5.0)``, or one that is not stable with None."""
    return row_maker(clock, make_subject)


def row_maker(clock: MadeUpClock, make_subject: MakeSubject) -> Callable[..., Row]:

    def make(time_ms: float | None, **other: Any) -> Row:
        unsteady = itertools.chain([1.0], itertools.cycle([5.0] * 3 + [6.0] * 3))
        times: Iterator[float] = unsteady if time_ms is None else itertools.repeat(time_ms)
        row = measure(make_subject(times, **other), QUICK, clock, Limits(100.0, 10.0, 2))
        state = MachineState({"cpu0": 1500.0}, {"cpu": 50.0}, "nvpmodel 15W")
        return replace(row, before=state, after=state)

    return make


@pytest.fixture(scope="module")
def report() -> Report:
    """A report with everything in it."""
    clock = MadeUpClock()
    make_subject = subject_maker(clock)
    make_row = row_maker(clock, make_subject)
    first, second = make_subject(itertools.repeat(5.0)), make_subject(itertools.repeat(7.0), name="other")
    second = replace(second, identity=replace(second.identity, precision="int8"))
    plan = replace(QUICK, iterations=30)
    rate = hold(
        lambda: clock.pass_ms(3), first.identity, fps=30, seconds=70, allowed_share=0.001, plan=QUICK, clock=clock
    )  # fmt: skip
    load = Load(0.5, 0.1, 2)
    jumped = replace(make_row(5.0), jumps_ms=(12.0,))
    return Report(
        now_utc(), describe_machine(), describe_versions({"onnxruntime"}), clock.name, plan, load, load, Limits(100.0, 10.0, 2),
        DeviceLimits("a GPU", 2e4, 100.0), (jumped, make_row(None, name="unsteady")),
        compare(first, second, plan, clock), (rate,),
    )  # fmt: skip


def refuse_constants(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def paths_of(value: object, path: str = "") -> set[str]:
    """Paths of all fields; ``*`` for names that vary, ``[]`` for entries of a list."""
    if isinstance(value, dict):
        return {
            found
            for name, one in value.items()
            for found in paths_of(one, f"{path}.{'*' if OPEN.search(path) else name}".strip("."))
        }
    if isinstance(value, list):
        return {found for one in value for found in paths_of(one, f"{path}[]")} if value else set()
    return {path}


def documented_paths() -> set[str]:
    page = (ROOT / "docs" / "benchmarking.md").read_text()
    table = page.partition("## The JSON")[2].partition("`--lines FILE`")[0]
    return {
        path for line in table.splitlines() if line.startswith("| `") for path in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


def covers(documented: str, path: str) -> bool:
    """Whether a documented path speaks of a path: the same but for ``*``, or of what is below it where it is null or empty."""
    wanted, found = documented.split("."), path.split(".")
    for one, other in zip(wanted, found, strict=False):
        if one not in ("*", other) and not (one == f"{other}[]" and other == found[-1]):
            return False
    # A star at the end stands for everything below it, too.
    return len(found) <= len(wanted) or wanted[-1] == "*"


def test_every_field_is_documented_and_every_documented_field_is_there(report: Report) -> None:
    text = json.dumps(report.to_document(), allow_nan=False)
    found = paths_of(json.loads(text, parse_constant=refuse_constants))
    documented = documented_paths()
    assert len(documented) > 60
    assert {path for path in found if not any(covers(one, path) for one in documented)} == set()
    # null in every row here, because this machine's device tells nothing.
    assert {one for one in documented if not any(covers(one, path) for path in found)} == set()


def test_the_schema_check_bites(report: Report) -> None:
    found = paths_of({**report.to_document(), "news": 1})
    assert [path for path in found if not any(covers(one, path) for one in documented_paths())] == ["news"]


def test_what_is_not_stable_is_null(report: Report) -> None:
    document = report.to_document()
    assert document["schema"] == "refusion-edge/bench/1"
    stable, unsteady = document["rows"]
    assert stable["stages"]["infer"]["median_ms"] == 5
    assert stable["stages"]["infer"]["p90_ms"] is None
    assert "h2d" not in stable["stages"]
    assert (unsteady["stable"], unsteady["stages"], unsteady["pairs_per_s"]) == (False, None, None)
    assert len(unsteady["windows"]) == QUICK.most_windows
    assert not report.passed
    assert document["comparison"]["ratios"]["end_to_end"]["value"] == pytest.approx(1.4)
    assert document["deadlines"][0]["holds"] is True


def test_a_row_survives_json(report: Report) -> None:
    for row in report.rows:
        assert row_from_document(json.loads(json.dumps(row_document(row))), "x") == row


def test_csv_has_a_line_for_each_stage(report: Report) -> None:
    lines = list(csv.DictReader(report.to_csv().splitlines()))
    assert [line["stage"] for line in lines] == ["preprocess", "infer", "postprocess", "end_to_end", "cpu", "end_to_end"]
    assert lines[1] | {"median_ms": "5", "p99_ms": "", "size": "16x24", "stable": "1"} == lines[1]
    assert (lines[-1]["name"], lines[-1]["stable"], lines[-1]["median_ms"]) == ("unsteady", "0", "")


def test_page_holds_everything_and_needs_nothing(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="pages need the extra 'eval'")
    Path("old.json").write_text(json.dumps(report.to_document()))
    compared = changes(report, read_baseline(Path("old.json")), 0.1)
    page = render_page(replace(report, rows=(replace(report.rows[0], files={"a<b>": "0"}), report.rows[1])), compared)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.count("<svg") == 6  # stages, distribution, quality, two over time, ages
    for text in (
        "not stable",
        "1.40x faster than other",
        "holds 30 fps",
        "nvpmodel 15W",
        "a&lt;b&gt;",
        "arithmetic",
        "1.00x ok",
    ):
        assert text in page, text
    assert "LOADED" not in page
    assert not re.search(r"\b(nan|inf|None)\b", page)
    # The color of a stage is that of its legend.
    assert re.search(r"background:(#\w+);[^>]*></span>infer", page)[1] in re.findall(r'fill="(#\w+)"><title>infer', page)
    loaded = render_page(replace(report, load_after=Load(9.0, 1.5, 2)))
    assert "LOADED MACHINE" in loaded


def test_an_engine_that_is_not_replayed_from_a_graph_is_named_wherever_it_was_measured(report: Report) -> None:
    assert graph_texts(report) == []
    problem, both = "a <graph> cannot be recorded", report.comparison
    assert both is not None
    troubled = replace(
        report,
        rows=(replace(report.rows[0], graph_problem=problem), report.rows[1]),
        comparison=replace(both, graph_problems=("", problem)),
        deadlines=(replace(report.deadlines[0], graph_problem=problem),),
    )
    names = ["ir_vis fp32 16x24", "ir_vis fp32 16x24", "other int8 16x24"]
    assert graph_texts(troubled) == [f"{name}: NOT replayed from a recorded CUDA graph: {problem}" for name in names]
    document = troubled.to_document()
    assert [row["graph_problem"] for row in document["rows"]] == [problem, ""]
    assert document["comparison"]["graph_problems"] == ["", problem]
    assert document["deadlines"][0]["graph_problem"] == problem
    assert row_from_document(document["rows"][0], "x") == troubled.rows[0]
    # Lines of earlier releases do not say.
    del document["rows"][1]["graph_problem"]
    assert row_from_document(document["rows"][1], "x") == troubled.rows[1]
    if importlib.util.find_spec("jinja2"):
        assert render_page(troubled).count("a &lt;graph&gt; cannot") == 3


def test_a_sweep_goes_on_where_it_stopped(make_row: Callable[..., Row]) -> None:
    first, second = make_row(5.0), make_row(7.0, name="other")
    path, configuration = Path("out/sweep.jsonl"), {"plan": {"seconds": 3.0}, "engines": {"ir_vis": {"w": "00"}}}
    with SweepLog(path, configuration) as log:
        log.add(first)
    whole = path.read_text()
    path.write_text(whole + '{"identity": {"na')
    with SweepLog(path, configuration) as log:
        assert log.rows == {first.identity: first}
        assert path.read_text() == whole
        log.add(second)
    assert read_rows(path) == (configuration, (first, second))
    with SweepLog(path, configuration) as log:
        assert log.rows == {row.identity: row for row in (first, second)}


def test_measurements_of_earlier_releases_are_continued(make_row: Callable[..., Row]) -> None:
    row = make_row(5.0)
    path, configuration = Path("sweep.jsonl"), {"images": ["a.png", "b.png"], "plan": {}}
    with SweepLog(path, configuration) as log:
        log.add(row)
    path.write_text(path.read_text().replace('"images"', '"pictures"').replace('"color"', '"colour"'))
    assert read_rows(path) == (configuration, (row,))
    with SweepLog(path, configuration) as log:
        assert log.rows == {row.identity: row}


def test_two_sweeps_do_not_share_a_file(make_row: Callable[..., Row]) -> None:
    path = Path("sweep.jsonl")
    with SweepLog(path, {}) as log:
        log.add(make_row(5.0))
        before = path.read_bytes()
        with raises(OutputError, "sweep.jsonl"), SweepLog(path, {}):
            pass
        assert path.read_bytes() == before
    with SweepLog(path, {}) as log:
        assert len(log.rows) == 1


def test_what_was_not_stable_is_measured_again(make_row: Callable[..., Row]) -> None:
    path = Path("sweep.jsonl")
    unsteady, steady = make_row(None), make_row(5.0)
    with SweepLog(path, {}) as log:
        log.add(unsteady)
    with SweepLog(path, {}) as log:
        assert log.rows == {}
        log.add(steady)
    with SweepLog(path, {}) as log:
        assert log.rows == {steady.identity: steady}
    assert read_rows(path)[1] == (unsteady, steady)


def test_another_configuration_is_not_continued(make_row: Callable[..., Row]) -> None:
    path = Path("sweep.jsonl")
    with SweepLog(path, {"plan": {"seconds": 3.0}, "backend": "auto"}) as log:
        log.add(make_row(5.0))
    before = path.read_bytes()
    with raises(UsageError, "plan.seconds 3.0", "5.0"), SweepLog(path, {"plan": {"seconds": 5.0}, "backend": "auto"}):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["precious", "precious\n", '{"schema": "other/1"}\n', "[]\n", "\0\n", '{"schema": []'])
def test_a_file_of_somebody_else_is_left_alone(content: str) -> None:
    Path("mine").write_text(content)
    with raises(InputError, "mine"), SweepLog(Path("mine"), {}):
        pass
    assert Path("mine").read_text() == content


def test_a_damaged_line_is_named(make_row: Callable[..., Row]) -> None:
    path = Path("sweep.jsonl")
    with SweepLog(path, {}) as log:
        log.add(make_row(5.0))
    path.write_text(path.read_text() + '{"identity": {}}\n')
    with raises(InputError, "sweep.jsonl"), SweepLog(path, {}):
        pass


@pytest.mark.slow
def test_slower_than_the_threshold_is_a_regression(report: Report, make_row: Callable[..., Row]) -> None:
    Path("old.json").write_text(json.dumps(report.to_document()))
    baseline = read_baseline(Path("old.json"))
    for time_ms, verdict in ((5.4, False), (5.6, True), (4.0, False), (None, True)):
        (change,) = changes(replace(report, rows=(make_row(time_ms),)), baseline, 0.10)
        assert change.is_regression is verdict
    (was_unsteady,) = changes(
        replace(report, rows=(make_row(5.0, name="ir_vis"),)), replace(baseline, rows=(report.rows[1],)), 0.1
    )
    assert (was_unsteady.ratio, was_unsteady.is_regression) == (None, False)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"size_hw": (32, 24)}, ("size_text 16x24", "32x24")),
        ({"task": "medical"}, ("task ir_vis", "medical")),
        ({"precision": "fp16", "size_hw": (32, 24)}, ("precision fp32", "fp16", "size_text 16x24", "32x24")),
        ({"threads": 3}, ("threads 0", "3 here")),
    ],
)
def test_unlike_things_are_not_compared(report: Report, other: dict[str, Any], named: tuple[str, ...]) -> None:
    Path("old.json").write_text(json.dumps(report.to_document()))
    baseline = read_baseline(Path("old.json"))
    identity = replace(report.rows[0].identity, **other)
    with raises(UsageError, *named):
        check_comparable(baseline, [identity], asdict(describe_machine()))
    check_comparable(baseline, [replace(identity, **asdict(report.rows[0].identity))], asdict(describe_machine()))


def test_another_machine_is_not_compared(report: Report) -> None:
    machine = replace(report.machine, processor="Cortex-A78AE", cores=6)
    Path("old.json").write_text(json.dumps(replace(report, machine=machine).to_document()))
    with raises(UsageError, "Cortex-A78AE"):
        check_comparable(read_baseline(Path("old.json")), [], asdict(describe_machine()))


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"schema": "refusion-edge/bench/1"}', '{"schema": "x/1"}'])
def test_what_is_no_report_is_refused(content: str | None) -> None:
    if content is not None:
        Path("old.json").write_text(content)
    with pytest.raises(RefusionError) as caught:
        read_baseline(Path("old.json"))
    assert caught.value.exit_code == 4
    assert one_sentence(str(caught.value))


NO_TIMES = [float("nan"), float("inf"), -1, -0.5, 0, 1e999, "5", None, True, [5.0], 10**400]


def with_median(report: Report, value: object, field: str = "median_ms") -> dict[str, Any]:
    document = report.to_document()
    document["rows"][0]["stages"]["end_to_end"][field] = value
    return document


@pytest.mark.parametrize("value", NO_TIMES)
@pytest.mark.parametrize("form", ["report", "lines"])
def test_a_time_that_is_none_is_no_measurement(report: Report, value: object, form: str) -> None:
    document = with_median(report, value)
    path = Path("old.json")
    if form == "report":
        path.write_text(json.dumps(document))
    else:
        header = {"schema": "refusion-edge/bench-lines/1", "configuration": {}}
        path.write_text("".join(json.dumps(one) + "\n" for one in (header, document["rows"][0])))
    with pytest.raises(InputError) as caught:
        read_baseline(path) if form == "report" else SweepLog(path, {}).__enter__()
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("field", ["count", "mean_ms", "max_ms", "p90_ms"])
@pytest.mark.parametrize("value", [-1, float("nan"), "many", 1e-9])
def test_times_that_contradict_each_other_are_no_measurement(report: Report, field: str, value: object) -> None:
    if value == 1e-9 and field != "max_ms":
        value = 1e9
    document = with_median(report, value, field)
    if field == "count":
        document["rows"][0]["stages"]["end_to_end"]["count"] = 0 if value == 1e9 else value
    Path("old.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        read_baseline(Path("old.json"))
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 5},
        {"rows": [5]},
        {"rows": [{}]},
        {"machine": []},
        {"loaded": "no"},
        {"loaded": None},
        {"load_before": None},
        {"load_after": {"average": "low", "busy_cores": 0.0, "cores": 2}},
        {"schema": ["refusion-edge/bench/1"]},
        {"started": "\ud800"},
    ],
)
def test_reports_with_wrong_types_are_one_error(report: Report, change: dict[str, Any]) -> None:
    Path("old.json").write_text(json.dumps(report.to_document() | change))
    with raises(InputError, "old.json"):
        read_baseline(Path("old.json"))


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "5", '{"a": 1e999}', ""])
def test_what_is_no_report_is_one_error(text: str) -> None:
    Path("old.json").write_text(text)
    with raises(InputError, "old.json"):
        read_baseline(Path("old.json"))


def test_a_baseline_says_whether_it_was_measured_under_load(report: Report) -> None:
    document = report.to_document()
    busy = {**document["load_before"], "busy_cores": 50.0, "cores": 2}
    for change, loaded in (({}, report.loaded), ({"loaded": True}, True), ({"load_after": busy}, True)):
        Path("old.json").write_text(json.dumps(document | change))
        assert read_baseline(Path("old.json")).loaded is loaded


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_lines_need_a_regular_file(kind: str) -> None:
    path = Path("sweep.jsonl")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with raises(InputError, "sweep.jsonl"), SweepLog(path, {}):
        pass
    assert path.is_fifo() or path.is_dir()
