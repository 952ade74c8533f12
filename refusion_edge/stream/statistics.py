"""Thread-safe counters and distributions of a running stream, in bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refusion_edge.stream.frames import MODES, MS, SIDES, FusedFrame, Mode, Side

STAGES = ("pairing", "queue", "preprocess", "infer", "postprocess", "output", "age")

# Bins that grow by 2 % from a microsecond to a thousand seconds: percentiles are accurate to 1 %.
_MIN_MS, _GROWTH, _BINS = 1e-3, 1.02, 1050
_SKEW_EDGES_MS = (-200, -100, -66, -33, -22, -16, -11, -8, -5, -2, 2, 5, 8, 11, 16, 22, 33, 66, 100, 200)
_KEPT_EVENTS = 1000
_RATE_WINDOW = 64


class Distribution:
    """Histogram of times in milliseconds, in logarithmic bins."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self.count = 0
        self._sum_ms = 0.0
        self._max_ms = 0.0

    def add(self, value_ms: float) -> None:
        """Count a value; anything below a microsecond counts as one microsecond."""
        value_ms = max(value_ms, _MIN_MS)
        bin_number = min(_BINS - 1, int(math.log(value_ms / _MIN_MS) / math.log(_GROWTH)))
        self._counts[bin_number] += 1
        self.count += 1
        self._sum_ms += value_ms
        self._max_ms = max(self._max_ms, value_ms)

    def percentile(self, percent: float) -> float | None:
        """Percentile of the values, accurate to 1 %, or None without values."""
        if not self.count:
            return None
        bin_number = int(np.searchsorted(np.cumsum(self._counts), math.ceil(self.count * percent / 100)))
        return min(self._max_ms, _MIN_MS * math.pow(_GROWTH, bin_number + 0.5))

    def summary(self) -> dict[str, Any]:
        """Count, mean, percentiles and maximum in ms; None where there is no value."""
        mean = self._sum_ms / self.count if self.count else None
        named = {f"p{percent:g}_ms": self.percentile(percent) for percent in (50, 90, 95, 99)}
        return {"count": self.count, "mean_ms": mean, **named, "max_ms": self._max_ms if self.count else None}


# Where `dropped` counts what a recording lost, and why.
RECORDING, DISK_TOO_SLOW, DISK_FULL = "recording", "disk too slow", "disk full"


STUCK_S, SILENT_S = 15.0, 5.0
"""Time of an engine for a pair after which it counts as stuck, and time without a fused frame that makes a stream unready."""

Listener = Callable[[str, str], object]


@dataclass(frozen=True, slots=True)
class Health:
    """State of a stream.

    Attributes:
        alive: False if a restart would help, because the engine does not answer; lost cameras do not count.
        ready: Whether frames are being fused.
        reason: Why it is not ready, in words.
    """

    alive: bool
    ready: bool
    reason: str


@dataclass(slots=True)
class CameraState:
    """Counters and current state of one camera.

    Attributes:
        frames_in: Frames delivered.
        missing: Frames that the source reports as missing.
        used: Frames that are part of at least one pair.
        freezes: Runs of identical frames.
        frozen_frames: Frames that repeat the previous one.
        losses: How often the camera was lost.
        reconnects: How often it came back.
        faults: How often it switched to unusable frames.
        state: ``running``, ``faulty``, ``lost`` or ``ended``.
        clock: Origin of the time stamps.
        timing: What is known about the clock of a live source, as plain values; None for others.
        declared_hz: Frames per second as the source declares them, or None.
        content_hz: Rate at which the content of its frames changes, or None if unknown.
        epochs: Clocks that wrote the times of a file: each time that it was set back begins another one.
        size_wh: Width and height of the last frame.
        dtype: Type of its pixels.
        remarks: What its source guessed or repaired.
    """

    frames_in: int = 0
    missing: int = 0
    used: int = 0
    freezes: int = 0
    frozen_frames: int = 0
    losses: int = 0
    reconnects: int = 0
    faults: int = 0
    state: str = "running"
    clock: str = ""
    timing: dict[str, Any] | None = None
    declared_hz: float | None = None
    content_hz: float | None = None
    epochs: int = 1
    size_wh: tuple[int, int] | None = None
    dtype: str = ""
    remarks: list[str] = field(default_factory=list)


class Statistics:
    """All counters of one run. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a listener may ask for figures
        self._started_ns = time.monotonic_ns()
        self.cameras: dict[Side, CameraState] = {side: CameraState() for side in SIDES}
        self._drops: Counter[tuple[str, str]] = Counter()
        self._modes: Counter[Mode] = Counter()
        self._stages = {stage: Distribution() for stage in STAGES}
        self._skews: Counter[int] = Counter()
        self._skew_abs = Distribution()
        self._skew_px = Distribution()
        self._speed_px_s = Distribution()
        self._held = 0
        self._pairs = 0
        self._outputs: Counter[tuple[str, str]] = Counter()
        self._refinement: dict[str, Any] | None = None
        self._reopened = 0
        self._listeners: list[Listener] = []
        self._shown_s: float | None = None
        self._busy_since_s: float | None = None
        self._end_reason: str | None = None
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self._events_total = 0
        self._arrivals: dict[str, deque[int]] = {name: deque(maxlen=_RATE_WINDOW) for name in (*SIDES, "fused")}
        self._times: dict[Side, deque[int]] = {side: deque(maxlen=_RATE_WINDOW) for side in SIDES}

    def delivered(self, side: Side, size_wh: tuple[int, int], dtype: str, *, missing: int = 0, time_ns: int) -> None:
        """Count a frame of a camera taken at ``time_ns``, and the frames missing before it."""
        with self._lock:
            camera = self.cameras[side]
            camera.frames_in += 1
            camera.missing += missing
            if camera.size_wh not in (None, size_wh):
                self._note(side, f"size changed to {size_wh[1]}x{size_wh[0]}")
                self._times[side].clear()  # many cameras are slower at another size
            camera.size_wh, camera.dtype = size_wh, dtype
            self._arrivals[side].append(time.monotonic_ns())
            self._times[side].append(time_ns)

    def restarted(self) -> None:
        """Forget the capture times of both cameras, as after a seek: those from before it say nothing about the rate."""
        with self._lock:
            for times in self._times.values():
                times.clear()

    def followed(self, epochs: Mapping[Side, int], news: Sequence[tuple[Side, str]]) -> None:
        """Keep the number of epochs of each source, and record the events that began them."""
        with self._lock:
            for side in SIDES:
                self.cameras[side].epochs = epochs[side]
            for side, text in news:
                self._note(side, text)

    def dropped(self, where: str, cause: str, count: int = 1) -> None:
        """Count what was dropped: a frame of a camera, a pair (``pair``), or a fused frame of an output (``output NAME``)."""
        with self._lock:
            self._drops[where, cause] += count

    def wrote(self, output: str, what: str = "frames") -> None:
        """Count a frame, or something else (``what``), that an output wrote."""
        with self._lock:
            self._outputs[output, what] += 1

    def paired(self, skew_ns: int | None, *, held: bool) -> None:
        """Count a pair and its skew."""
        with self._lock:
            self._pairs += 1
            self._held += held
            if skew_ns is not None:
                self._skews[int(np.searchsorted(_SKEW_EDGES_MS, skew_ns / MS, side="right"))] += 1
                self._skew_abs.add(abs(skew_ns) / MS)

    def moved(self, speed_px_s: float, skew_ns: int) -> None:
        """Count a measured speed, and the misregistration in pixels that it causes over the skew of the pair."""
        with self._lock:
            self._speed_px_s.add(speed_px_s)
            self._skew_px.add(speed_px_s * abs(skew_ns) / 1e9)

    def took(self, stage: str, elapsed_ns: int) -> None:
        """Count the duration of a stage."""
        with self._lock:
            self._stages[stage].add(elapsed_ns / MS)

    def shown(self, frame: FusedFrame) -> None:
        """Count a fused frame."""
        with self._lock:
            self._modes[frame.mode] += 1
            self._shown_s = time.monotonic()
            self._arrivals["fused"].append(time.monotonic_ns())

    def reopened(self, text: str) -> None:
        """Count an engine that failed and was reopened, and record the event."""
        with self._lock:
            self._reopened += 1
            self._note("engine", text)

    def refined(self, progress: dict[str, Any]) -> None:
        """Keep the progress of online refinement."""
        with self._lock:
            self._refinement = progress

    def remark(self, side: Side, text: str) -> None:
        """Record what a source guessed or repaired, for the end of the run and as an event."""
        with self._lock:
            self.cameras[side].remarks.append(text)
            self._note(side, text)

    def timing(self, side: Side) -> dict[str, Any]:
        """How the times of a source come about, as in the report: its clock, its rates, and how sure they are."""
        with self._lock:
            return self._timing(side)

    def drops_of(self, where: str, cause: str | None = None) -> int:
        """How often ``dropped`` counted a cause at a place, or any cause."""
        with self._lock:
            return sum(self._drops_of(where).values()) if cause is None else self._drops[where, cause]

    def note(self, side: str, text: str) -> None:
        """Record an event, such as a loss, a freeze or a damaged frame. All are counted; the last 1000 are kept."""
        with self._lock:
            self._note(side, text)

    def faulty(self, side: Side, text: str) -> None:
        """Count a camera that switched to unusable frames, and record the event."""
        with self._lock:
            camera = self.cameras[side]
            camera.faults += 1
            camera.state = "faulty" if camera.state == "running" else camera.state
            self._note(side, text)

    def recovered(self, side: Side, text: str) -> None:
        """Record that the frames of a camera are usable again."""
        with self._lock:
            camera = self.cameras[side]
            camera.state = "running" if camera.state == "faulty" else camera.state
            self._note(side, text)

    def _note(self, side: str, text: str) -> None:
        self._events_total += 1
        seconds = (time.monotonic_ns() - self._started_ns) / 1e9
        self._events.append({"time_s": round(seconds, 3), "where": side, "what": text})
        for listener in self._listeners:
            listener(side, text)

    @property
    def count(self) -> int:
        """Number of fused frames so far."""
        with self._lock:
            return sum(self._modes.values())

    def listen(self, listener: Listener) -> None:
        """Call a function for every event from now on, with its place and what happened; it must not wait."""
        with self._lock:
            self._listeners.append(listener)

    def busy(self, *, is_busy: bool) -> None:
        """Note that the engine begins or ends its work on a pair."""
        with self._lock:
            self._busy_since_s = time.monotonic() if is_busy else None

    def ends(self, reason: str) -> None:
        """Note why the stream ends. The first reason is the one that counts: the others follow from it."""
        with self._lock:
            self._end_reason = self._end_reason or reason

    @property
    def end_reason(self) -> str | None:
        """Why the stream ends, in words; None while it runs."""
        with self._lock:
            return self._end_reason

    def health(self) -> Health:
        """Whether the stream works now, for programs that restart it if it does not."""
        with self._lock:
            now_s = time.monotonic()
            if self._busy_since_s is not None and now_s - self._busy_since_s > STUCK_S:
                return Health(alive=False, ready=False, reason=f"the engine has not answered for {STUCK_S:g} s")
            if self._shown_s is None:
                return Health(alive=True, ready=False, reason="no frame has been fused yet")
            if now_s - self._shown_s > SILENT_S:
                return Health(alive=True, ready=False, reason=f"no frame has been fused for {SILENT_S:g} s")
            return Health(alive=True, ready=True, reason="")

    def snapshot(self) -> dict[str, Any]:
        """All figures as plain numbers and strings, ready for JSON."""
        with self._lock:
            return {
                "duration_s": (time.monotonic_ns() - self._started_ns) / 1e9,
                "end_reason": self._end_reason,
                "cameras": {side: self._camera(side) for side in SIDES},
                "pairs": {
                    "paired": self._pairs,
                    "held": self._held,
                    "shown": sum(self._modes.values()),
                    "modes": {mode: self._modes[mode] for mode in MODES},
                    "rate_hz": _rate(self._arrivals["fused"]),
                    "drops": self._drops_of("pair"),
                },
                "skew": {
                    "histogram_ms": self._skew_histogram(),
                    "absolute": self._skew_abs.summary(),
                    "speed_px_s": {key.removesuffix("_ms"): value for key, value in self._speed_px_s.summary().items()},
                    "misregistration_px": {key.removesuffix("_ms"): value for key, value in self._skew_px.summary().items()},
                },
                "refinement": self._refinement,
                "engine": {"reopened": self._reopened},
                "stages": {stage: times.summary() for stage, times in self._stages.items()},
                "outputs": {
                    name: {
                        **{what: count for (output, what), count in self._outputs.items() if output == name},
                        "drops": self._drops_of(f"output {name}"),
                    }
                    for name in sorted(self._output_names())
                },
                "recording": {"drops": self._drops_of(RECORDING)},
                "events": list(self._events),
                "events_total": self._events_total,
            }

    def _camera(self, side: Side) -> dict[str, Any]:
        camera = self.cameras[side]
        drops = self._drops_of(side)
        return {
            "in": camera.frames_in,
            "used": camera.used,
            "drops": drops,
            "unexplained": camera.frames_in - camera.used - sum(drops.values()),
            "missing_at_source": camera.missing,
            "freezes": camera.freezes,
            "frozen_frames": camera.frozen_frames,
            "losses": camera.losses,
            "reconnects": camera.reconnects,
            "faults": camera.faults,
            "state": camera.state,
            "clock": camera.clock,
            "timing": self._timing(side),
            "size_wh": None if camera.size_wh is None else list(camera.size_wh),
            "dtype": camera.dtype or None,
            "remarks": list(camera.remarks),
            "rate_hz": _rate(self._arrivals[side]),
        }

    def _timing(self, side: Side) -> dict[str, Any]:
        camera = self.cameras[side]
        known = {"rate_error_ppm": None, "delay_ms": None, "error_ms": None, "steps": 0, "epochs": 1, **(camera.timing or {})}
        return {
            **known,
            "clock": camera.clock,
            "declared_hz": camera.declared_hz,
            "measured_hz": _rate(self._times[side]),
            "content_hz": camera.content_hz,
            "steps": known["steps"] + camera.epochs - 1,
            "epochs": known["epochs"] + camera.epochs - 1,
        }

    def _output_names(self) -> set[str]:
        """Outputs that wrote or lost something."""
        lost = {place.removeprefix("output ") for place, _ in self._drops if place.startswith("output ")}
        return {name for name, _ in self._outputs} | lost

    def _drops_of(self, where: str) -> dict[str, int]:
        return {cause: count for (place, cause), count in sorted(self._drops.items()) if place == where}

    def _skew_histogram(self) -> list[dict[str, Any]]:
        ends = (None, *_SKEW_EDGES_MS, None)
        return [
            {"from_ms": ends[number], "to_ms": ends[number + 1], "pairs": self._skews[number]}
            for number in range(len(ends) - 1)
        ]


def _rate(arrivals_ns: deque[int]) -> float | None:
    """Frames per second over the last arrivals, or None before the second one."""
    if len(arrivals_ns) < 2 or arrivals_ns[-1] <= arrivals_ns[0]:
        return None
    return (len(arrivals_ns) - 1) * 1e9 / (arrivals_ns[-1] - arrivals_ns[0])
