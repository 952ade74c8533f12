"""Numbers of a benchmark as words, the same in tables and on pages."""

from __future__ import annotations

from refusion_edge.bench.deadline import Deadline
from refusion_edge.bench.measurement import Row
from refusion_edge.bench.regression import Change
from refusion_edge.bench.report import NOT_STABLE, Report
from refusion_edge.bench.sensors import NOT_AVAILABLE, MachineState

ABSENT = "-"


def time_text(value_ms: float | None) -> str:
    """A time in ms with three digits, or a dash."""
    if value_ms is None:
        return ABSENT
    return f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.3g}"


def stage_text(row: Row, stage: str, what: str = "median") -> str:
    """Median, a percentile or the maximum of a stage; a dash for a stage that is not there."""
    if row.stages is None:
        return NOT_STABLE
    found = row.stages.get(stage)
    if found is None:
        return ABSENT
    named = {"median": found.median_ms, "max": found.max_ms, **found.percentiles_ms}
    return time_text(named[what])


def drift_text(row: Row) -> str:
    """Last window against the first."""
    return f"{row.drift:.2f}x"


def energy_text(row: Row) -> str:
    """Energy of one pair."""
    return NOT_AVAILABLE if row.energy_mj is None else f"{row.energy_mj:.3g} mJ"


def memory_text(row: Row) -> str:
    """Peak memory of the process and what the engine added to it."""
    added = "" if row.memory.added_mib is None else f" (+{row.memory.added_mib:.0f})"
    return f"{row.memory.peak_mib:.0f}{added}"


def device_memory_text(row: Row) -> str:
    """Memory on the accelerator."""
    return ABSENT if row.memory.device_mib is None else f"{row.memory.device_mib:.0f}"


def roofline_text(row: Row) -> str:
    """Share of what the processor or device can do."""
    return ABSENT if row.roofline is None else f"{row.roofline.share:.0%} ({row.roofline.bound})"


def throughput_text(row: Row) -> str:
    """Pairs in a second."""
    return NOT_STABLE if row.pairs_per_s is None else f"{row.pairs_per_s:.3g}"


def state_texts(state: MachineState) -> dict[str, str]:
    """Clocks, temperatures and power mode."""
    clocks = ", ".join(f"{name} {clock:.0f} MHz" for name, clock in state.clocks_mhz.items())
    temperatures = ", ".join(f"{zone} {degrees:.0f} °C" for zone, degrees in state.temperatures_c.items())
    return {
        "clocks": clocks or NOT_AVAILABLE,
        "temperatures": temperatures or NOT_AVAILABLE,
        "power mode": state.power_mode,
    }


def stability_text(row: Row) -> str:
    """How it was measured, in one line."""
    counted = sum(window.count for window in row.windows[-3:])
    what = f"{counted} iterations in the last 3 of {len(row.windows)} windows"
    jumps = f", {len(row.jumps_ms)} more thrown away because the clock jumped" if row.jumps_ms else ""
    return f"warm-up {row.warmup_iterations} iterations in {row.warmup_ms:.0f} ms; {what}{jumps}"


def graph_texts(report: Report) -> list[str]:
    """A sentence for each engine whose runs were started piece by piece, because no CUDA graph of them could be recorded."""
    found = [(row.identity, row.graph_problem) for row in report.rows]
    found += [(held.identity, held.graph_problem) for held in report.deadlines]
    if (both := report.comparison) is not None:
        found += zip((both.first, both.second), both.graph_problems, strict=True)
    return [f"{identity.label}: NOT replayed from a recorded CUDA graph: {problem}" for identity, problem in found if problem]


def limits_text(report: Report) -> str:
    """What the processor and the device can do."""
    texts = []
    if (limits := report.limits) is not None:
        texts.append(
            f"float32 matrix product {limits.matrix_gflops:.0f} GFLOP/s, copies {limits.copy_gb_per_s:.1f} GB/s on "
            f"{limits.cores} cores"
        )
    if (device := report.device_limits) is not None:
        texts.append(
            f"{device.device}: half-precision products {device.matrix_gflops:.0f} GFLOP/s, copies "
            f"{device.copy_gb_per_s:.0f} GB/s"
        )
    return f"limits measured here: {'; '.join(texts)}" if texts else "limits of the machine: not measured"


def load_text(report: Report) -> str:
    """A warning where other programs disturbed the numbers, else nothing."""
    if not report.loaded:
        return ""
    return f"LOADED MACHINE: {report.load_before} before, {report.load_after} after; these numbers are not for quoting"


def deadline_text(found: Deadline) -> str:
    """Whether the rate is held."""
    answer = "holds" if found.holds else "does NOT hold"
    return (
        f"{found.identity.label} {answer} {found.fps:g} fps for {found.seconds:g} s: {found.dropped + found.late} of "
        f"{found.arrived} frames missed ({found.missed_share:.2%}; {found.dropped} dropped, {found.late} late; allowed "
        f"{found.allowed_share:.2%})"
    )


def change_text(change: Change) -> str:
    """What became of a number."""
    if change.ratio is None:
        return f"{NOT_STABLE} {'then' if change.before_ms is None else 'now'}"
    return f"{change.ratio:.2f}x {'REGRESSION' if change.is_regression else 'ok'}"
