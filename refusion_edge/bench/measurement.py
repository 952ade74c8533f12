"""Measure one engine: the stages of each run, stable windows, memory, energy, and how close it came to the limits."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from refusion_edge.backends.registry import Backend
from refusion_edge.bench.limits import Rates, Roofline, roofline
from refusion_edge.bench.sensors import MachineState, MemoryUse, MemoryWatch, open_meter, read_state
from refusion_edge.bench.statistics import Spread, spread
from refusion_edge.bench.subjects import Identity, Quality, Subject
from refusion_edge.bench.timing import AGREEING, NS_PER_MS, Clock, Plan, Series, measure_windows
from refusion_edge.errors import BackendError, UsageError
from refusion_edge.fuser import Fuser
from refusion_edge.images.pairs import ImagePair

STAGES = ("capture", "preprocess", "h2d", "infer", "d2h", "postprocess")
END_TO_END, CPU = "end_to_end", "cpu"
_ON_DEVICE = ("h2d", "infer", "d2h")
_OUTLINE = 101


@runtime_checkable
class DeviceTimed(Protocol):
    """A back end that times its own stages on the device with events."""

    def time_stages(self) -> None:
        """Time the stages of every later call to ``fuse``."""

    def device_stages_ms(self) -> Mapping[str, float]:
        """Times of ``h2d``, ``infer`` and ``d2h`` of the last call to ``fuse``; a stage it does not have is absent."""


@runtime_checkable
class GraphReplaying(Protocol):
    """A back end that replays its runs from a recorded CUDA graph where it can.

    Attributes:
        graph_problem: Why it does not, known after the first run; empty if it does.
    """

    graph_problem: str


@dataclass(frozen=True, slots=True)
class Lap:
    """Times of one run.

    Attributes:
        stages_ms: Time of each stage; a stage that did not take place is absent.
        end_to_end_ms: From the request for the source images to the fused image.
        cpu_ms: Processor time of the process over the same interval, all threads.
    """

    stages_ms: Mapping[str, float]
    end_to_end_ms: float
    cpu_ms: float


class Pipeline:
    """Fuses one pair repeatedly and times each stage.

    Without a device, ``infer`` is the call to the back end by the host's clock, and ``h2d`` and ``d2h`` are absent. A back end
    that times its own stages on the device supplies them instead. The call returns only when the device is done, so the
    end-to-end time covers everything.

    Args:
        fuser: An open fuser.
        source: Returns the pair.
        captured: Whether reading the pair is a stage of its own; False if it is in memory already.
        clock: The clock.
        color: Whether the fused image keeps the color of the sources.
    """

    def __init__(
        self, fuser: Fuser, source: Callable[[], ImagePair], *, captured: bool, clock: Clock, color: bool = True
    ) -> None:
        self._fuser, self._source, self._captured, self._clock, self._color = fuser, source, captured, clock, color
        self._timed = fuser.backend if isinstance(fuser.backend, DeviceTimed) else None
        if self._timed is not None:
            self._timed.time_stages()

    @property
    def graph_problem(self) -> str:
        """Why runs are not replayed from a recorded CUDA graph; empty if they are, or if the back end has none."""
        return graph_problem(self._fuser.backend)

    def run(self) -> Lap:
        """Fuse the pair once."""
        clock, fuser = self._clock, self._fuser
        cpu_ns, started_ns = clock.cpu_ns(), clock.now_ns()
        pair = self._source()
        captured_ns = clock.now_ns()
        planes = fuser.to_planes(pair.a, pair.b)
        prepared_ns = clock.now_ns()
        output = fuser.infer(planes, color=self._color)
        inferred_ns = clock.now_ns()
        fuser.to_image(output, planes, color=self._color)
        ended_ns = clock.now_ns()
        cpu_ns = clock.cpu_ns() - cpu_ns

        times_ms = {"capture": (captured_ns - started_ns) / NS_PER_MS} if self._captured else {}
        times_ms["preprocess"] = (prepared_ns - captured_ns) / NS_PER_MS
        if self._timed is not None:
            on_device = self._timed.device_stages_ms()
            times_ms.update({stage: on_device[stage] for stage in _ON_DEVICE if stage in on_device})
        else:
            times_ms["infer"] = (inferred_ns - prepared_ns) / NS_PER_MS
        times_ms["postprocess"] = (ended_ns - inferred_ns) / NS_PER_MS
        return Lap(times_ms, (ended_ns - started_ns) / NS_PER_MS, cpu_ns / NS_PER_MS)


def graph_problem(backend: Backend) -> str:
    """Why runs of a back end are not replayed from a recorded CUDA graph; empty as in ``Pipeline``."""
    return backend.graph_problem if isinstance(backend, GraphReplaying) else ""


def times_of(laps: Sequence[Lap]) -> dict[str, NDArray[np.float64]]:
    """Times by stage, ``end_to_end`` and ``cpu``, each (n,); a stage missing from any lap is absent."""
    present = [stage for stage in STAGES if all(stage in lap.stages_ms for lap in laps)]
    return {
        **{stage: np.array([lap.stages_ms[stage] for lap in laps]) for stage in present},
        END_TO_END: np.array([lap.end_to_end_ms for lap in laps]),
        CPU: np.array([lap.cpu_ms for lap in laps]),
    }


def median_end_to_end(laps: Sequence[Lap]) -> float:
    """Median end-to-end time, on which the windows of a measurement have to agree."""
    return float(np.median([lap.end_to_end_ms for lap in laps]))


def parse_stages(text: str) -> tuple[str, ...]:
    """Parse names of stages, separated by commas.

    Raises:
        UsageError: A name is unknown; the message suggests the nearest one.
    """
    known = (*STAGES, END_TO_END, CPU)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
            raise UsageError(
                f"there is no stage '{name}'{hint}", f"choose from {', '.join(known)}", expected=tuple(known), got=name
            )
    return names


@dataclass(frozen=True, slots=True)
class WindowSummary:
    """Summary of one window.

    Attributes:
        started_s: Start, in seconds after the warm-up.
        count: Iterations.
        median_ms: Median of the end-to-end time.
        max_ms: Largest end-to-end time.
    """

    started_s: float
    count: int
    median_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; without numbers other than its windows if it was not stable.

    Attributes:
        identity: What was measured.
        files: SHA-256 of the files it was loaded from.
        quality: Result of its accuracy gate; None if it has not run.
        stable: Whether the last three windows agree.
        warmup_iterations: Iterations of the warm-up.
        warmup_ms: Time of the warm-up.
        windows: All windows.
        jumps_ms: Jumps of the clock; their windows were discarded.
        stages: Distributions over the last three windows of each stage, ``end_to_end`` and ``cpu``.
        outline_ms: 101 quantiles of the end-to-end time, from minimum to maximum.
        pairs_per_s: Pairs fused per second, one after the other.
        drift: Median of the last window over that of the first.
        memory: Peak memory.
        energy_mj: Energy of the machine per pair, mJ; None if nothing measures it.
        energy_source: What measured it; empty if nothing did.
        before: State of the machine before the warm-up.
        after: State of the machine after the last window.
        roofline: How close the network came to the limits of the processor or device; None if these were not measured.
        graph_problem: Why runs were not replayed from a recorded CUDA graph; empty if they were, or if no device is involved.
    """

    identity: Identity
    files: dict[str, str]
    quality: Quality | None
    stable: bool
    warmup_iterations: int
    warmup_ms: float
    windows: tuple[WindowSummary, ...]
    jumps_ms: tuple[float, ...]
    stages: dict[str, Spread] | None
    outline_ms: tuple[float, ...] | None
    pairs_per_s: float | None
    drift: float
    memory: MemoryUse
    energy_mj: float | None
    energy_source: str
    before: MachineState
    after: MachineState
    roofline: Roofline | None
    graph_problem: str = ""


def measure(subject: Subject, plan: Plan, clock: Clock, limits: Rates | None) -> Row:
    """Open a subject, measure it, and close it.

    Args:
        subject: What to measure.
        plan: How long to measure.
        clock: The clock.
        limits: Limits of the processor or device that runs it, or None.

    Raises:
        BackendError: It would run on another back end than requested.
        BundleError: The bundle changed during the measurement.
        CheckpointError: The weights changed during the measurement.
        MeasurementError: The clock keeps jumping.
    """
    before = read_state()
    with MemoryWatch() as memory, open_pipeline(subject, clock) as pipeline, open_meter() as meter:
        # Energy of the windows only: what the meter read during the warm-up is subtracted.
        marks_j: list[float | None] = []

        def mark() -> None:
            energy = meter.read()
            marks_j.append(None if energy is None else energy.joules)

        series = measure_windows(pipeline.run, median_end_to_end, plan, clock, mark)
        energy = meter.read()
        used, graph_problem = memory.use(), pipeline.graph_problem
    after = read_state()
    subject.check_unchanged()

    times_ms = times_of(series.laps)
    stages = {stage: spread(times) for stage, times in times_ms.items()} if series.stable else None
    outline = np.quantile(times_ms[END_TO_END], np.linspace(0, 1, _OUTLINE)) if series.stable else None
    started_j = marks_j[-AGREEING] if len(marks_j) >= AGREEING else None
    energy_mj = None
    if series.stable and energy is not None and started_j is not None and not series.jumps_ms:
        energy_mj = 1e3 * (energy.joules - started_j) / len(series.laps)
    return Row(
        identity=subject.identity,
        files=subject.files,
        quality=subject.quality,
        stable=series.stable,
        warmup_iterations=series.warmup_iterations,
        warmup_ms=series.warmup_ms,
        windows=_summaries(series),
        jumps_ms=series.jumps_ms,
        stages=stages,
        outline_ms=None if outline is None else tuple(float(value) for value in outline),
        pairs_per_s=1e3 / stages[END_TO_END].mean_ms if stages else None,
        drift=series.drift,
        memory=used,
        energy_mj=energy_mj,
        energy_source=energy.source if energy is not None else "",
        before=before,
        after=after,
        roofline=_roofline(subject, stages, limits),
        graph_problem=graph_problem,
    )


@contextlib.contextmanager
def open_pipeline(subject: Subject, clock: Clock) -> Iterator[Pipeline]:
    """Open the engine of a subject, and close it at the end.

    Raises:
        BackendError: It would run on another back end than requested.
    """
    with subject.open() as fuser:
        wanted = subject.identity.backend
        if fuser.backend.name != wanted:
            raise BackendError(
                f"{subject.identity.name} was to run on the back end {wanted} but opened on {fuser.backend.name}",
                "choose it with --backend",
                expected=wanted,
                got=fuser.backend.name,
            )
        identity = subject.identity
        yield Pipeline(fuser, subject.source, captured=subject.captured, clock=clock, color=identity.color)


def _summaries(series: Series[Lap]) -> tuple[WindowSummary, ...]:
    return tuple(
        WindowSummary(window.started_s, len(window.laps), window.figure, max(lap.end_to_end_ms for lap in window.laps))
        for window in series.windows
    )


def _roofline(subject: Subject, stages: dict[str, Spread] | None, limits: Rates | None) -> Roofline | None:
    if stages is None or limits is None or "infer" not in stages:
        return None
    return roofline(subject.work, subject.identity.pixels, stages["infer"].median_ms, limits)
