"""Fusing frames that others deliver, one by one: for GStreamer and ROS, which own sources, threads and outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, RigError, ShapeError, UsageError
from refusion_edge.fuser import Fuser, load
from refusion_edge.rig.file import read_rig
from refusion_edge.rig.model import GAIN_METHODS
from refusion_edge.rig.warp import make_warp
from refusion_edge.stream.frames import MS, SECOND, SIDES, Frame, FusedFrame, Side, other
from refusion_edge.stream.pairing.pairer import Outcome, Pairer
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.run.networks import AUTO, FASTER, NetworkChooser
from refusion_edge.stream.statistics import Statistics

DEFAULT_TASK = "ir_vis"
# The pairer keeps the frames of a whole second.
_MOST_AHEAD_NS = SECOND // 2


@dataclass(frozen=True, slots=True)
class Settings:
    """Options as texts and numbers; empty texts leave the choice to the rig or a default.

    Attributes:
        network: ``refusion``, ``fast``, or ``auto`` for the better one that keeps up with the cameras here, see
            ``refusion_edge.stream.run.networks``; empty for the bundle's network, and ``refusion`` without a bundle.
        bundle: Folder of an engine bundle, or a weights file.
        backend: Back end, or ``auto``.
        threads: Threads of the back end; 0 for its default.
        rig: Rig file.
        gain: Gain control of 16-bit infrared.
        max_skew_ms: Maximum time difference in a pair; a negative value stands for 0.6 of the period of the faster camera.
        resize: Whether infrared is resized to the visible size if there is no rig.
    """

    network: str = ""
    bundle: str = ""
    backend: str = "auto"
    threads: int = 0
    rig: str = ""
    gain: str = ""
    max_skew_ms: float = -1.0
    resize: bool = False


class Coupling:
    """Fuses what two cameras deliver. Use it as a context manager, which closes the engine.

    Any thread may call any method; frames are fused one after another, in the thread whose frame completes a pair.

    Args:
        settings: Options.
        remark: Called once with every guess or doubt about a camera.
        fuser: Runs the network in place of the one that the settings name.

    Attributes:
        dropped: Number of frames that were not paired, by reason.

    Raises:
        RefusionError: A setting cannot be used, or the engine cannot be opened.
    """

    def __init__(
        self, settings: Settings, remark: Callable[[str], object] = lambda _text: None, *, fuser: Fuser | None = None
    ) -> None:
        gain = next((method for method in GAIN_METHODS if method == settings.gain), None)
        if settings.gain and gain is None:
            raise UsageError(
                f"there is no gain control '{settings.gain}'", f"choose one of {', '.join(GAIN_METHODS)}",
                expected=tuple(GAIN_METHODS), got=settings.gain,
            )  # fmt: skip
        rig = read_rig(settings.rig) if settings.rig else None
        method, polarity = gain or (rig.gain if rig else "percentile"), rig.polarity if rig else "white"
        self._gain = partial(ThermalGain, method, polarity=polarity)
        self._geometry = Geometry(None if rig is None else make_warp(rig), resize=settings.resize)
        self._max_skew_ns = None if settings.max_skew_ms < 0 else round(settings.max_skew_ms * MS)
        # An explicit bundle leaves nothing to choose.
        chooses = settings.network == AUTO and not settings.bundle and fuser is None
        network = FASTER if chooses else None if settings.network in ("", AUTO) else settings.network
        self._settings, self._remark = settings, remark
        self._fuser = fuser or self._load(network)
        self._backend = self._fuser.backend
        self._statistics = Statistics()
        self._chooser = NetworkChooser(self._load, self._statistics, announce=remark) if chooses else None
        self._choosing = None if self._chooser is None else threading.Thread(target=self._chooser.run, daemon=True)
        self.dropped: dict[str, int] = {}
        self._lock = threading.Condition()
        self._ended: set[Side] = set()
        self._begin()
        if self._choosing is not None:
            self._choosing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._chooser is not None and self._choosing is not None:
            self._chooser.__exit__(*exc)
            self._choosing.join()
        self._fuser.__exit__(*exc)

    @property
    def network(self) -> str:
        """Name of the network that runs now, and of its back end."""
        name = self._fuser.network if self._chooser is None else self._chooser.used[-1][1]
        return f"{name} on {self._backend.name}"

    def push(
        self,
        side: Side,
        image: Array,
        time_ns: int,
        emit: Callable[[FusedFrame], object],
        *,
        is_stale: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Accept a frame, and fuse the pairs that it completes.

        Args:
            side: Its camera.
            image: (H, W), or (H, W, 3) BGR; not changed, and not to be changed by others.
            time_ns: When it was taken; both cameras have one clock.
            emit: Called with each fused frame, in order.
            is_stale: Whether the frame is from before a ``restart`` after all; asked when no other frame is at work.

        Returns:
            Whether more pairs may come: not once the other camera has ended, and this frame is too late for its last one.

        Raises:
            ShapeError: The cameras differ in size and there is no rig, or a frame is too small.
            RefusionError: The rig does not fit, or the network fails.
        """
        with self._lock:
            if is_stale():
                return True
            index, self._count[side] = self._count[side], self._count[side] + 1
            self._statistics.delivered(side, (image.shape[1], image.shape[0]), str(image.dtype), time_ns=time_ns)
            self._times_ns[side].append(time_ns)
            del self._times_ns[side][1:-1]
            self._lock.notify_all()
            self._fuse(self._pairer.push(Frame(side, image, index, time_ns, time_ns, time_ns)), emit)
            if other(side) not in self._ended:
                return True
            last_ns = self._times_ns[other(side)][-1:]
            if last_ns and time_ns <= last_ns[0] + self._pairer.max_skew_ns:
                return True
            self._fuse(self._pairer.flush(), emit)
            return False

    def wait_for_other(self, side: Side, ends: Callable[[], bool]) -> None:
        """Wait while a camera is far ahead of the other one, as the pairer keeps only so many frames.

        Args:
            side: The camera.
            ends: Ends the wait; asked again after every frame and ``wake``.
        """
        with self._lock:
            self._lock.wait_for(lambda: not self._is_ahead(side) or ends())

    def wake(self) -> None:
        """Let those that wait ask again."""
        with self._lock:
            self._lock.notify_all()

    def end(self, side: Side, emit: Callable[[FusedFrame], object]) -> bool:
        """Note that a camera has ended, and return whether more pairs may come; if not, fuse what still waits."""
        with self._lock:
            self._ended.add(side)
            self._lock.notify_all()
            if len(self._ended) < len(SIDES) and self._times_ns[side]:
                return True
            self._fuse(self._pairer.flush(), emit)
            return False

    def restart(self, sides: Iterable[Side] = SIDES) -> None:
        """Forget the frames of both cameras, as after a seek.

        Args:
            sides: Cameras that deliver again even if they had ended.
        """
        with self._lock:
            self._ended.difference_update(sides)
            self._statistics.restarted()
            self._begin()
            self._lock.notify_all()

    def _begin(self) -> None:
        self._pairer = Pairer(max_skew_ns=self._max_skew_ns)
        self._processor = Processor(
            self._backend, gain=self._gain(), stretch=OutputStretch(), geometry=self._geometry, took=self._statistics.took,
            remark=self._remark_on,
        )  # fmt: skip
        self._count = dict.fromkeys(SIDES, 0)
        self._times_ns: dict[Side, list[int]] = {side: [] for side in SIDES}  # the first one and the last one
        self._fused = 0

    def _is_ahead(self, side: Side) -> bool:
        mine, theirs = self._times_ns[side], self._times_ns[other(side)]
        if not mine or other(side) in self._ended:
            return False
        return mine[-1] - (theirs[-1] if theirs else mine[0]) > _MOST_AHEAD_NS

    def _fuse(self, outcome: Outcome, emit: Callable[[FusedFrame], object]) -> None:
        for _, reason in outcome.dropped:
            self._drop(reason)
        for pair in outcome.pairs:
            try:
                fused = self._processor.process(pair)
            except InputError as error:
                # As in a stream: what does not fit from the start is a mistake, what changes later is a fault that passes.
                if isinstance(error, RigError) or (self._fused == 0 and isinstance(error, ShapeError)):
                    raise
                self._drop("unusable frame")
                self._remark(str(error))
                continue
            self._fused += 1
            emit(fused)
            if self._chooser is not None and (backend := self._chooser.next_backend(fused, pair)) is not None:
                self._backend = backend
                self._processor.use_backend(backend)

    def _load(self, network: str | None) -> Fuser:
        settings = self._settings
        source = settings.bundle or DEFAULT_TASK
        return load(source, backend=settings.backend, threads=settings.threads, streaming=True, network=network)

    def _remark_on(self, side: Side, text: str) -> None:
        self._remark(f"{side}: {text}")

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
