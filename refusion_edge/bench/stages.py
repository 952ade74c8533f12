"""One fused picture with the time of each of its stages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from refusion_edge.backends.registry import Backend
from refusion_edge.bench.clock import NS_PER_MS, Clock
from refusion_edge.errors import UsageError
from refusion_edge.fuser import Fuser
from refusion_edge.images.pairs import ImagePair

STAGES = ("capture", "preprocess", "h2d", "infer", "d2h", "postprocess")
END_TO_END, CPU = "end_to_end", "cpu"
_ON_DEVICE = ("h2d", "infer", "d2h")


@runtime_checkable
class DeviceTimed(Protocol):
    """A back end that can time its own stages on the device, with events."""

    def time_stages(self) -> None:
        """Time the stages of every later call of ``fuse``."""

    def device_stages_ms(self) -> Mapping[str, float]:
        """Times of ``h2d``, ``infer`` and ``d2h`` of the last call of ``fuse``; a stage it does not have is absent."""


@runtime_checkable
class GraphReplaying(Protocol):
    """A back end that replays its runs from a recorded CUDA graph where it can.

    Attributes:
        graph_problem: Why it does not, known after the first run; empty if it does.
    """

    graph_problem: str


@dataclass(frozen=True, slots=True)
class Lap:
    """Times of one picture.

    Attributes:
        stages_ms: Stage to its time; a stage that was not there is absent.
        end_to_end_ms: From the request for the pictures to the finished picture.
        cpu_ms: Processor time of the process for the same, all threads.
    """

    stages_ms: Mapping[str, float]
    end_to_end_ms: float
    cpu_ms: float


class Pipeline:
    """Fuses one pair again and again, noting the time of each stage.

    Without a device, ``infer`` is the call of the back end by the host's clock, and there is no ``h2d`` and no ``d2h``. Where
    the back end times its own stages on the device, those count; the call returns only when the device is done, so that the
    end-to-end time holds everything.

    Args:
        fuser: An open fuser.
        source: Gives the pair.
        captured: Whether getting the pair is a stage of its own; False if it just lies in memory.
        clock: The clock.
        colour: Whether the picture keeps the colour of the sources.
    """

    def __init__(
        self, fuser: Fuser, source: Callable[[], ImagePair], *, captured: bool, clock: Clock, colour: bool = True
    ) -> None:
        self._fuser, self._source, self._captured, self._clock, self._colour = fuser, source, captured, clock, colour
        self._timed = fuser.backend if isinstance(fuser.backend, DeviceTimed) else None
        if self._timed is not None:
            self._timed.time_stages()

    @property
    def graph_problem(self) -> str:
        """Why runs are not replayed from a recorded CUDA graph; empty if they are, and where there are no such graphs."""
        return graph_problem(self._fuser.backend)

    def run(self) -> Lap:
        """Fuse the pair once."""
        clock, fuser = self._clock, self._fuser
        cpu_ns, started_ns = clock.cpu_ns(), clock.now_ns()
        pair = self._source()
        captured_ns = clock.now_ns()
        planes = fuser.to_planes(pair.a, pair.b)
        prepared_ns = clock.now_ns()
        output = fuser.infer(planes, colour=self._colour)
        inferred_ns = clock.now_ns()
        fuser.to_picture(output, planes, colour=self._colour)
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
    """Times by stage, ``end_to_end`` and ``cpu``, each (n,); a stage that is not in every lap is absent."""
    present = [stage for stage in STAGES if all(stage in lap.stages_ms for lap in laps)]
    return {
        **{stage: np.array([lap.stages_ms[stage] for lap in laps]) for stage in present},
        END_TO_END: np.array([lap.end_to_end_ms for lap in laps]),
        CPU: np.array([lap.cpu_ms for lap in laps]),
    }


def median_end_to_end(laps: Sequence[Lap]) -> float:
    """What the windows of a measurement have to agree on."""
    return float(np.median([lap.end_to_end_ms for lap in laps]))


def parse_stages(text: str) -> tuple[str, ...]:
    """Read names of stages, separated by commas.

    Raises:
        UsageError: One is unknown; the message suggests the nearest one.
    """
    known = (*STAGES, END_TO_END, CPU)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
            raise UsageError(f"expected stages out of {', '.join(known)}, got '{name}'{hint}.")
    return names
