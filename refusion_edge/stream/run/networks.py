"""Which network a stream runs: the better one that holds the cameras' rate here, or those that a recording names.

``refusion`` is the better one and costs ten times as much as ``fast``. A stream that has to choose begins with ``fast`` and
measures both beside it for about a second, so that no frame waits for the measurement; the other work of the stream makes
its times longer, not shorter.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from refusion_edge.arrays import Float32Array
from refusion_edge.backends.registry import Backend
from refusion_edge.errors import RefusionError
from refusion_edge.fuser import Fuser
from refusion_edge.images.color import split_uint8
from refusion_edge.sizes import MIN_SIDE
from refusion_edge.stream.frames import SIDES, FusedFrame, Pair
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.statistics import Statistics

AUTO = "auto"
BETTER, FASTER = "refusion", "fast"

LARGEST_SHARE = 0.8
"""Largest share of a frame period that the better network may take together with gain, color and range."""
_TRIAL_S = 0.5
# A network that takes this many periods for an image is not measured further: on a slow board, one image of the better network
# may take half a minute. That is found out on a sixteenth of the image.
_HOPELESS_PERIODS = 4
_PART = 4
# Fused frames without a rate, as with times that stand still, after which the networks are measured nevertheless.
_MOST_UNRATED = 64

Open = Callable[[str], Fuser]
"""Opens the engine of a network by its name."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a network took.

    Attributes:
        network: Its name.
        backend: Back end that ran it, or empty if none could.
        infer_ms: Median time of an image in ms, or None if it could not be run.
        runs: Number of images; 0 if the time is that of a part of one, times the number of parts.
        problem: Why it could not be run, in words.
    """

    network: str
    backend: str
    infer_ms: float | None
    runs: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """A network, and why it was taken.

    Attributes:
        network: Its name.
        reason: In words, for the user.
        size_wh: Width and height of the images, or None where nothing was measured.
        rate_hz: Frames per second to hold, or None if unknown.
        rest_ms: Median time of everything else between a pair and its fused frame, in ms.
        trials: What was measured.
    """

    network: str
    reason: str
    size_wh: tuple[int, int] | None = None
    rate_hz: float | None = None
    rest_ms: float | None = None
    trials: tuple[Trial, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values for the report."""
        return asdict(self)


def decide(trials: Sequence[Trial], rate_hz: float | None, rest_ms: float, size_wh: tuple[int, int]) -> Decision:
    """Take the better network if it holds the rate with a margin, otherwise the faster one.

    Args:
        trials: One of each network, the better one first.
        rate_hz: Frames per second to hold, or None if unknown.
        rest_ms: Time of everything else between a pair and its fused frame, in ms.
        size_wh: Width and height of the images.
    """
    better, faster = trials
    times = ", ".join(_words(trial) for trial in trials)
    size = f"{size_wh[1]}x{size_wh[0]}"
    if faster.infer_ms is None or better.infer_ms is None:
        network = faster.network if better.infer_ms is None else better.network
        chose = "stays with" if better.infer_ms is None and faster.infer_ms is None else "chose"
        return Decision(network, f"auto {chose} {network} for {size}: {times}", size_wh, rate_hz, rest_ms, tuple(trials))
    if rate_hz is None:
        reason = f"auto chose {faster.network} for {size}: the rate of the cameras is unknown; measured: {times}"
        return Decision(faster.network, reason, size_wh, rate_hz, rest_ms, tuple(trials))
    period_ms = 1000 / rate_hz
    holds = better.infer_ms + rest_ms <= LARGEST_SHARE * period_ms
    network = better.network if holds else faster.network
    reason = (
        f"auto chose {network} for {size} at {rate_hz:.3g} frames per second: measured {times} per frame, and {_ms(rest_ms)} "
        f"for the rest; {better.network} may take {_ms(max(0.0, LARGEST_SHARE * period_ms - rest_ms))}"
    )
    if not holds and faster.infer_ms + rest_ms > period_ms:
        reason += f", and {faster.network} does not hold the rate either, so that pairs are skipped"
    return Decision(network, reason, size_wh, rate_hz, rest_ms, tuple(trials))


def _words(trial: Trial) -> str:
    if trial.infer_ms is None:
        return f"{trial.network} cannot run here ({trial.problem})"
    about = "" if trial.runs else "about "
    return f"{trial.network} {about}{_ms(trial.infer_ms)} on {trial.backend}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def measure(
    fuser: Fuser,
    network: str,
    a: Float32Array,
    b: Float32Array,
    period_s: float | None,
    ends: Callable[[], bool] = lambda: False,
) -> Trial:
    """Measure the time that a network takes for an image, for half a second and at least once.

    Args:
        fuser: Its engine.
        network: Its name.
        a: Source a, (1, 1, H, W), [0, 1].
        b: Source b, same shape.
        period_s: Frame period to hold; a network that takes several of them is measured on a part of the image only. None if
            unknown.
        ends: Asked between two runs; ends the measurement early, with a result that is not to be used.
    """

    def seconds(*planes: Float32Array) -> float:
        started_s = time.perf_counter()
        fuser.backend.fuse(*planes)
        return time.perf_counter() - started_s

    height, width = (max(MIN_SIDE, side // _PART) for side in a.shape[2:])
    part = a[..., :height, :width], b[..., :height, :width]
    # The first run of each size also prepares memory.
    estimate_s = min(seconds(*part), seconds(*part)) * (a[0, 0].size / (height * width))
    if ends() or (period_s is not None and estimate_s > _HOPELESS_PERIODS * period_s):
        return Trial(network, fuser.backend.name, 1000 * estimate_s)
    seconds(a, b)
    taken_s: list[float] = []
    while not taken_s or (sum(taken_s) < _TRIAL_S and not ends()):
        taken_s.append(seconds(a, b))
    return Trial(network, fuser.backend.name, 1000 * float(np.median(taken_s)), len(taken_s))


class NetworkPlan(Protocol):
    """Decides between two frames which network the next ones are fused by."""

    used: list[tuple[int, str]]
    """Number of the first pair of each network, in order, with its name."""
    decisions: list[Decision]
    """What was decided so far, and why; empty where a network was asked for by name, or before the first decision."""

    def next_backend(self, fused: FusedFrame, pair: Pair) -> Backend | None:
        """The back end for the pairs after this one, or None if it stays; called for every fused frame, from its thread."""

    def close(self) -> None:
        """No more frames will come."""


class NetworkChooser:
    """Chooses the network of a live stream, at its start and again when a camera changes its size. Implements ``NetworkPlan``.

    It measures in a thread of its own, with engines of its own: those of the network that is not taken are closed again. Use it
    as a context manager, which closes them all.

    Args:
        open_network: Opens the engine of a network.
        statistics: Counters of the run: rates of the cameras, times of the other stages, and events.
        begun_with: Name of the network that runs at the start.
        fastest: Whether the faster camera sets the rate, as for all policies of pairing but ``drop``.
        announce: Called with each decision in words.

    Attributes:
        used: See ``NetworkPlan``.
        decisions: See there.
    """

    def __init__(
        self,
        open_network: Open,
        statistics: Statistics,
        *,
        begun_with: str = FASTER,
        fastest: bool = True,
        announce: Callable[[str], object] = lambda _text: None,
    ) -> None:
        self.decisions: list[Decision] = []
        self.used = [(0, begun_with)]
        self._open, self._statistics, self._fastest, self._announce = open_network, statistics, fastest, announce
        self._sizes_wh: list[tuple[int, int]] | None = None
        self._to_measure: Channel[FusedFrame] = Channel(1, lossless=False)
        self._measured: Channel[Fuser | Literal["stays"]] = Channel(1, lossless=False)
        self._measuring = False
        self._unrated = 0
        self._running: Fuser | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._ending = threading.Event()

    def __enter__(self) -> NetworkChooser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        with self._lock:
            self._closed = True  # the network that is being measured is the last one
            waiting = self._measured.get(0)
            for fuser in (waiting, self._running):
                if isinstance(fuser, Fuser):
                    fuser.__exit__(None, None, None)

    def next_backend(self, fused: FusedFrame, pair: Pair) -> Backend | None:
        """See ``NetworkPlan``."""
        if self._measuring and len(self._measured):
            self._measuring = False
            found = self._measured.get()
            if isinstance(found, Fuser):
                return self._take(found, fused.number + 1)
        if self._measuring or fused.mode != "fused":
            return None
        sizes_wh = [frame.size_wh for frame in (pair.ir, pair.vis) if frame is not None]
        if sizes_wh != self._sizes_wh:
            # At the start and after a seek, the rate is known from the second frame of a camera on.
            self._unrated += 1
            if self._unrated < _MOST_UNRATED and self._rate_hz() is None:
                return None
            self._sizes_wh, self._unrated = sizes_wh, 0
            self._measuring = True
            self._to_measure.put(fused)
        return None

    def run(self) -> None:
        """Measure the networks for each frame that asks for it, until the channel is closed."""
        while (fused := self._to_measure.get()) is not None:
            self._choose(fused)

    def close(self) -> None:
        """See ``NetworkPlan``; a measurement that is running ends with the run of the network that it is in."""
        self._ending.set()
        self._to_measure.close()

    def _take(self, fuser: Fuser, number: int) -> Backend:
        before, self._running = self._running, fuser
        if before is not None:
            before.__exit__(None, None, None)
        self.used.append((number, self.decisions[-1].network))
        return fuser.backend

    def _choose(self, fused: FusedFrame) -> None:
        assert fused.ir is not None
        assert fused.vis is not None
        height, width = fused.ir.shape
        luma = split_uint8(fused.vis, "bgr")[0] * np.float32(1 / 255)
        planes = fused.ir[None, None], luma[None, None]
        with contextlib.ExitStack() as engines:
            opened: dict[str, Fuser] = {}
            trials, rate_hz = [], self._rate_hz()
            for network in (BETTER, FASTER):
                if self._ending.is_set():
                    return
                rate_hz = self._rate_hz() or rate_hz  # a seek during the measurement makes it unknown for a moment
                try:
                    fuser = opened[network] = engines.enter_context(self._open(network))
                    period_s = None if rate_hz is None else 1 / rate_hz
                    trials.append(measure(fuser, network, *planes, period_s, self._ending.is_set))
                except RefusionError as error:
                    trials.append(Trial(network, "", None, problem=error.problem))
                except MemoryError:
                    trials.append(Trial(network, "", None, problem="there is not enough memory for it beside the stream"))
            if self._ending.is_set():
                return
            decision = decide(trials, self._rate_hz() or rate_hz, self._rest_ms(), (width, height))
            again = "" if not self.decisions else "after a change of size, "
            self.decisions.append(decision)
            self._statistics.note("network", again + decision.reason)
            self._announce(f"network: {again}{decision.reason}")
            with self._lock:
                runs = any(trial.network == decision.network and trial.infer_ms is not None for trial in trials)
                if self._closed or not runs or decision.network == self.used[-1][1]:
                    self._measured.put("stays")
                    return
                chosen = opened.pop(decision.network)
                engines.pop_all()
                for fuser in opened.values():
                    fuser.__exit__(None, None, None)
                self._measured.put(chosen)

    def _rate_hz(self) -> float | None:
        """The rate of the cameras; the declared one if it is higher than the measured one, as in the dark."""
        timing = [self._statistics.timing(side) for side in SIDES]
        rates = [max(each["declared_hz"] or 0.0, each["measured_hz"] or 0.0) for each in timing]
        return (max(rates) if self._fastest else min(rates)) or None

    def _rest_ms(self) -> float:
        stages = self._statistics.snapshot()["stages"]
        return sum(stages[stage]["p50_ms"] or 0.0 for stage in ("preprocess", "postprocess"))


class PlannedNetworks:
    """Networks that are known beforehand: one for the whole run, or those of a recording. Implements ``NetworkPlan``.

    Use it as a context manager, which closes the engines it opened.

    Args:
        planned: Number of the first pair of each network, in order, with its name; the first one is running already.
        open_network: Opens the engine of a network.
        reason: Why it is this network, in words; empty where it was asked for by name.
    """

    def __init__(self, planned: Sequence[tuple[int, str]], open_network: Open, reason: str = "") -> None:
        self.used = [planned[0]]
        self.decisions = [Decision(planned[0][1], reason)] if reason else []
        self._coming = list(planned[1:])
        self._open = open_network
        self._engines = contextlib.ExitStack()

    def __enter__(self) -> PlannedNetworks:
        return self

    def __exit__(self, *exc: object) -> None:
        self._engines.close()

    def next_backend(self, fused: FusedFrame, pair: Pair) -> Backend | None:
        """See ``NetworkPlan``."""
        if not self._coming or fused.number + 1 < self._coming[0][0]:
            return None
        self.used.append(self._coming.pop(0))
        self._engines.close()
        return self._engines.enter_context(self._open(self.used[-1][1])).backend

    def close(self) -> None:
        """See ``NetworkPlan``."""
