"""The running stream: threads, bounded queues, drops, losses, and one clear end.

    reader ir  ─┐                               ┌─ output 1
                ├─ pairing ── engine ───────────┤
    reader vis ─┘     └─ recorder               └─ output 2 ...

For cameras every queue drops its oldest item when it is full, so that latency is bounded and the newest pair wins; for files
every queue waits. A thread that fails hands its error to the main thread and stops the run; no wait is without an end.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from refusion_edge.errors import InputError, RefusionError, RigError, ShapeError, SourceLostError, StreamError
from refusion_edge.rig.warp import RigWarp
from refusion_edge.stream.frames import SIDES, Frame, FusedFrame, Pair, Side
from refusion_edge.stream.outputs.recording import PairFate, Recorder, Recording
from refusion_edge.stream.outputs.sinks import Sink
from refusion_edge.stream.pairing.failover import Matcher
from refusion_edge.stream.pairing.freeze import FreezeWatch
from refusion_edge.stream.pairing.pairer import Outcome
from refusion_edge.stream.picture.processor import Processor
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.run.motion import MotionMeter
from refusion_edge.stream.run.refinement import RigRefiner
from refusion_edge.stream.sources.source import CLOCK_ARRIVAL, CorruptFrameError, Grab, Source
from refusion_edge.stream.statistics import Statistics

_INBOX, _LIVE_PAIRS, _FILE_PAIRS, _RECORDED = 64, 1, 4, 128
_POLL_S = 0.1
_STOP_S = 10.0
_BACK_OFF_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
# Every so many visible frames in pairs, two in a row are compared to measure motion.
_MOTION_EVERY = 10
_DTYPES = (np.uint8, np.uint16, np.float32)
# A live camera whose time stamps did not advance for so many frames in a row has none.
_MOST_STANDING = 3


@dataclass(frozen=True, slots=True)
class RunLimits:
    """When a run ends.

    Attributes:
        give_up_s: Both cameras lost for so long end it with ``SourceLostError``.
        duration_s: End after this time, or None.
        pictures: End after so many fused pictures, or None.
    """

    give_up_s: float = 30.0
    duration_s: float | None = None
    pictures: int | None = None


class StreamRun:
    """One run from sources, or a recording, to outputs.

    Args:
        sources: The two cameras, not entered yet; or a recording to replay.
        matcher: Decides which frames are shown together.
        processor: Makes the pictures; its smoothing belongs to this run.
        sinks: Outputs, not entered yet.
        statistics: Counters of the run.
        limits: When it ends.
        recorder: Keeps the raw frames, or None.
        refiner: Follows slow changes of the rig, or None. With cameras it works beside the engine; with files the engine waits
            for it, so that the same files give the same pictures.
        hashed: Whether to hash the pictures, so that two runs can be compared.

    Attributes:
        stop: Set it, from any thread, to end the run as after a signal.
    """

    def __init__(
        self,
        sources: tuple[Source, Source] | Recording,
        matcher: Matcher,
        processor: Processor,
        sinks: Sequence[Sink],
        statistics: Statistics,
        *,
        limits: RunLimits | None = None,
        recorder: Recorder | None = None,
        refiner: RigRefiner | None = None,
        hashed: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self.stop = stop or threading.Event()
        self._recording = sources if isinstance(sources, Recording) else None
        self._sources = {} if isinstance(sources, Recording) else {source.side: source for source in sources}
        self._live = any(source.live for source in self._sources.values())
        self._matcher, self._processor, self._sinks, self._statistics = matcher, processor, tuple(sinks), statistics
        self._limits = limits or RunLimits()
        self._recorder = recorder
        self._refiner = refiner
        # One measurement at a time: the next one starts from pictures that were warped with what the last one found.
        self._to_measure: Channel[FusedFrame] = Channel(1, lossless=False)
        self._measured: Channel[RigWarp | None] = Channel(1, lossless=False)
        self._measuring = False
        self._hash = hashlib.sha256() if hashed else None
        # Cameras share one queue, in the order of arrival; files have one each, and the earlier frame goes first.
        shared: Channel[Frame] = Channel(_INBOX, lossless=not self._live)
        self._inboxes = {side: shared if self._live else Channel[Frame](_INBOX, lossless=True) for side in SIDES}
        self._pairs: Channel[tuple[Pair, int]] = (
            Channel(_LIVE_PAIRS, lossless=False) if self._live else Channel(_FILE_PAIRS, lossless=True)
        )
        self._recorded: Channel[Frame | PairFate] = Channel(_RECORDED, lossless=not self._live)
        self._outboxes = [Channel[FusedFrame](sink.capacity, lossless=sink.lossless and not self._live) for sink in self._sinks]
        self._failure: BaseException | None = None
        self._failed = threading.Lock()
        self._readers_left = len(self._sources)
        self._delivered_s = 0.0
        self._motion = MotionMeter()
        self._heads: dict[Side, Frame | None] = {}
        self._pictures = 0

    def run(self) -> str | None:
        """Run until the sources end, a limit is reached, ``stop`` is set, or something fails.

        Returns:
            SHA-256 of all fused pictures, if it was asked for.

        Raises:
            KeyboardInterrupt: A signal came; everything was closed before.
            RefusionError: A source, an output or the engine failed; everything was closed before.
        """
        with contextlib.ExitStack() as stack:
            for source in self._sources.values():
                # Its own thread leaves it and may open it again; leaving twice does no harm.
                stack.callback(source.__exit__, None, None, None)
                source.__enter__()
            for sink in self._sinks:
                stack.enter_context(sink)
            if self._recorder is not None:
                stack.enter_context(self._recorder)
            threads = [self._thread(name, work) for name, work in self._work()]
            try:
                for thread in threads:
                    thread.start()
                self._wait(threads)
            finally:
                self.stop.set()
                self._close_all()
                stuck = self._join(threads)
        if self._failure is not None:
            raise self._failure
        if stuck:
            raise StreamError(
                f"expected all parts of the stream to end within {_STOP_S:g} s, got no end of {', '.join(stuck)}."
            )
        return None if self._hash is None else self._hash.hexdigest()

    def _work(self) -> list[tuple[str, Callable[[], None]]]:
        work: list[tuple[str, Callable[[], None]]] = [
            (f"reader {side}", partial(self._read, source)) for side, source in self._sources.items()
        ]
        work.append(("pairing", self._replay if self._recording is not None else self._match))
        work.append(("engine", self._fuse))
        if self._recorder is not None:
            work.append(("recorder", self._record))
        if self._refiner is not None and self._live:
            work.append(("refinement", partial(self._refine, self._refiner)))
        work += [
            (f"output {sink.name}", partial(self._write, sink, outbox))
            for sink, outbox in zip(self._sinks, self._outboxes, strict=True)
        ]
        return work

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # handed over as a value, whatever it is
                with self._failed:
                    self._failure = self._failure or error
                self.stop.set()
                self._close_all()

        return threading.Thread(target=guarded, name=name, daemon=True)

    def _wait(self, threads: Sequence[threading.Thread]) -> None:
        started_s = time.monotonic()
        while any(thread.is_alive() for thread in threads) and not self.stop.wait(_POLL_S):
            now_s = time.monotonic()
            if self._limits.duration_s is not None and now_s - started_s >= self._limits.duration_s:
                return
            if self._live and now_s - max(started_s, self._delivered_s) >= self._limits.give_up_s:
                with self._failed:
                    self._failure = self._failure or SourceLostError(
                        f"expected one of the two cameras back within {self._limits.give_up_s:g} s, got none; check cables and "
                        "power."
                    )
                return

    def _close_all(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
        if self.stop.is_set():
            self._to_measure.close()
            self._pairs.close()
            self._recorded.close()
            for outbox in self._outboxes:
                outbox.close()

    def _join(self, threads: Sequence[threading.Thread]) -> list[str]:
        deadline_s = time.monotonic() + _STOP_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline_s - time.monotonic()))
        return [thread.name for thread in threads if thread.is_alive()]

    # Reading

    def _read(self, source: Source) -> None:
        side, freeze, expected = source.side, FreezeWatch(), -1 if source.live else 0
        stamps = _Stamps()
        camera = self._statistics.cameras[side]
        try:
            while not self.stop.is_set():
                try:
                    grab = source.read()
                except CorruptFrameError as error:
                    camera.frames_in += 1
                    expected += expected >= 0  # the first one of a camera says nothing of those before it
                    self._statistics.dropped(side, "damaged frame")
                    self._statistics.note(side, str(error))
                    continue
                except SourceLostError as error:
                    if not source.live:
                        raise
                    self._come_back(source, error)
                    freeze, stamps, expected = FreezeWatch(), _Stamps(), -1
                    continue
                if grab is None:
                    break
                missing = max(0, grab.index - expected) if expected >= 0 else 0
                expected = grab.index + 1
                self._deliver(source, stamps.check(grab) if source.live else grab, freeze, missing)
                if stamps.replaced:
                    camera.clock = f"{CLOCK_ARRIVAL}, as its own time stamps stand still"
        finally:
            camera.state = "ended" if camera.state != "lost" else camera.state
            source.__exit__(None, None, None)
            self._readers_left -= 1
            if not self._live or self._readers_left == 0:
                self._inboxes[side].close()

    def _deliver(self, source: Source, grab: Grab, freeze: FreezeWatch, missing: int) -> None:
        side, image = source.side, grab.image
        camera = self._statistics.cameras[side]
        self._statistics.delivered(side, (image.shape[1], image.shape[0]), str(image.dtype), missing=missing)
        camera.clock = source.clock
        self._delivered_s = time.monotonic()
        if image.dtype not in _DTYPES or image.ndim not in (2, 3):
            self._statistics.dropped(side, "unknown pixel type")
            return
        freezes = freeze.freezes
        unchanged_since_ns = freeze.add(image, grab.time_ns)
        camera.frozen_frames += freeze.freezes > 0 and unchanged_since_ns != grab.time_ns
        if freeze.freezes > freezes:
            camera.freezes += 1
            self._statistics.note(side, "frozen")
        frame = Frame(side, image, grab.index, grab.time_ns, time.monotonic_ns(), unchanged_since_ns)
        overflow = self._inboxes[side].put(frame)
        if overflow is not None:
            self._statistics.dropped(overflow.side, "stopped" if self.stop.is_set() else "queue of frames full")

    def _come_back(self, source: Source, error: SourceLostError) -> None:
        """Open a lost camera again, with growing pauses, until it is there or the run ends."""
        camera = self._statistics.cameras[source.side]
        camera.losses += 1
        camera.state = "lost"
        self._statistics.note(source.side, f"lost: {error}")
        source.__exit__(None, None, None)
        for pause_s in itertools.chain(_BACK_OFF_S, itertools.repeat(_BACK_OFF_S[-1])):
            if self.stop.wait(pause_s):
                return
            try:
                source.__enter__()
            except SourceLostError:
                continue
            camera.reconnects += 1
            camera.state = "running"
            self._statistics.note(source.side, "back")
            return

    # Pairing

    def _match(self) -> None:
        while (frame := self._next_frame()) is not None:
            if self._recorder is not None and self._recorded.put(frame) is not None:
                self._statistics.dropped("recording", "disk too slow")
            self._push(frame)
        self._hand_on(self._matcher.flush())
        self._end_pairing()

    def _push(self, frame: Frame) -> None:
        side = frame.side
        had_fault = side in self._matcher.faults
        self._hand_on(self._matcher.push(frame))
        fault = self._matcher.faults.get(side)
        if fault is not None and not had_fault:
            self._statistics.faulty(side, f"passed over: frames of {fault}, which the rig was made for")
        elif fault is None and had_fault:
            self._statistics.recovered(side, f"back: frames of {frame.size_wh[0]}x{frame.size_wh[1]} again")

    def _next_frame(self) -> Frame | None:
        """Take the next frame: in the order of arrival from cameras, in the order of time from files."""
        if self._live:
            return self._inboxes["ir"].get()
        heads = self._heads
        for side in SIDES:
            if heads.get(side) is None:
                heads[side] = self._inboxes[side].get()
        ready = [frame for frame in heads.values() if frame is not None]
        if not ready:
            return None
        first = min(ready, key=lambda frame: frame.time_ns)
        heads[first.side] = None
        return first

    def _replay(self) -> None:
        assert self._recording is not None
        for number in range(len(self._recording.rows)):
            if self.stop.is_set():
                return
            frame = self._recording.read(number)
            camera = self._statistics.cameras[frame.side]
            self._statistics.delivered(frame.side, (frame.image.shape[1], frame.image.shape[0]), str(frame.image.dtype))
            camera.frozen_frames += frame.stale_ns > 0
            self._push(frame)
        self._hand_on(self._matcher.flush())
        for camera in self._statistics.cameras.values():
            camera.state, camera.clock = "ended", "recorded time stamps"
        self._end_pairing()

    def _end_pairing(self) -> None:
        self._pairs.close()
        self._recorded.close()

    def _hand_on(self, outcome: Outcome) -> None:
        for frame, cause in outcome.dropped:
            self._statistics.dropped(frame.side, cause)
        for side in SIDES:
            self._statistics.cameras[side].used = self._matcher.used[side]
        for pair in outcome.pairs:
            now_ns = time.monotonic_ns()
            if self._recording is None:
                self._statistics.took("pairing", now_ns - pair.newest.arrived_ns)
            self._statistics.paired(pair.skew_ns, held=pair.held)
            self._measure_motion(pair)
            if self._recording is not None and pair.number in self._recording.not_shown:
                self._statistics.dropped("pair", "engine busy")
                continue
            late = self._pairs.put((pair, now_ns))
            if late is not None:
                self._statistics.dropped("pair", "stopped" if self.stop.is_set() else "engine busy")
                if self._recorder is not None:
                    self._recorded.put(PairFate(late[0].number))

    def _measure_motion(self, pair: Pair) -> None:
        if pair.vis is None or pair.skew_ns is None or pair.number % _MOTION_EVERY > 1 or pair.vis.image.dtype != np.uint8:
            return
        speed_px_s = self._motion.add(pair.vis.image, pair.vis.time_ns)
        if pair.number % _MOTION_EVERY == 1 and speed_px_s is not None:
            self._statistics.moved(speed_px_s, pair.skew_ns)

    # Fusing

    def _fuse(self) -> None:
        while (waiting := self._pairs.get()) is not None:
            pair, handed_on_ns = waiting
            if self.stop.is_set():
                self._statistics.dropped("pair", "stopped")
                continue
            self._statistics.took("queue", time.monotonic_ns() - handed_on_ns)
            try:
                fused = self._processor.process(pair)
            except InputError as error:
                # Cameras that never fitted are a mistake of the user; one that changes in the middle is a fault to live with,
                # and with a rig such frames do not come this far.
                if isinstance(error, RigError) or (self._pictures == 0 and isinstance(error, ShapeError)):
                    raise
                self._skip(error)
                continue
            self._follow_rig(fused)
            self._statistics.shown(fused)
            if self._hash is not None:
                self._hash.update(np.ascontiguousarray(fused.image).data)
            for sink, outbox in zip(self._sinks, self._outboxes, strict=True):
                if outbox.put(fused) is not None:
                    self._statistics.dropped(f"output {sink.name}", "stopped" if self.stop.is_set() else "output busy")
            self._pictures += 1
            if self._limits.pictures is not None and self._pictures >= self._limits.pictures:
                break
        self._to_measure.close()
        for outbox in self._outboxes:
            outbox.close()
        if self._limits.pictures is not None and self._pictures >= self._limits.pictures:
            self._finish_outputs()

    def _follow_rig(self, fused: FusedFrame) -> None:
        """Take over what refinement found, and give it the next picture when it is time."""
        if self._refiner is None:
            return
        if self._measuring and len(self._measured):
            self._use(self._measured.get())
            self._measuring = False
        elif not self._measuring and self._refiner.wants(fused):
            if self._live:
                self._measuring = True
                self._to_measure.put(fused)
            else:
                self._use(self._refiner.measure(fused))

    def _use(self, warp: RigWarp | None) -> None:
        if warp is not None:
            self._processor.use_warp(warp)

    def _refine(self, refiner: RigRefiner) -> None:
        while (fused := self._to_measure.get()) is not None:
            self._measured.put(refiner.measure(fused))

    def _finish_outputs(self) -> None:
        """Let outputs write what waits for them before the limit of pictures ends the run."""
        deadline_s = time.monotonic() + _STOP_S
        while any(len(outbox) for outbox in self._outboxes) and time.monotonic() < deadline_s and not self.stop.is_set():
            time.sleep(_POLL_S / 10)
        self.stop.set()
        self._close_all()

    def _skip(self, error: RefusionError) -> None:
        self._statistics.dropped("pair", "unusable picture")
        self._statistics.note("engine", str(error))

    # Writing

    def _write(self, sink: Sink, outbox: Channel[FusedFrame]) -> None:
        with contextlib.ExitStack() as stack:
            # Windows have to be closed by the thread that opened them, and files say at the end whether they are whole.
            stack.push(sink.__exit__)
            while (frame := outbox.get()) is not None:
                started_ns = time.monotonic_ns()
                sink.write(frame)
                now_ns = time.monotonic_ns()
                self._statistics.wrote(sink.name)
                self._statistics.took("output", now_ns - started_ns)
                if self._live:
                    self._statistics.took("age", now_ns - frame.time_ns)

    def _record(self) -> None:
        assert self._recorder is not None
        while (item := self._recorded.get()) is not None:
            self._recorder.write(item)


class _Stamps:
    """Time stamps of a live camera, as long as they advance; the host's at arrival otherwise."""

    def __init__(self) -> None:
        self.replaced = False
        self._latest_ns: int | None = None
        self._standing = 0

    def check(self, grab: Grab) -> Grab:
        """Give the frame with a time that advances; single steps back are left for pairing to refuse."""
        if not self.replaced:
            stands = self._latest_ns is not None and grab.time_ns <= self._latest_ns
            self._standing = self._standing + 1 if stands else 0
            self._latest_ns = grab.time_ns if self._latest_ns is None else max(self._latest_ns, grab.time_ns)
            self.replaced = self._standing >= _MOST_STANDING
        return replace(grab, time_ns=time.monotonic_ns()) if self.replaced else grab


def describe(run_settings: dict[str, Any], statistics: Statistics, output_sha256: str | None) -> dict[str, Any]:
    """Join settings and counters to the report of a run, schema ``refusion-edge/stream/1``."""
    return {
        "schema": "refusion-edge/stream/1",
        "settings": run_settings,
        "output_sha256": output_sha256,
        **statistics.snapshot(),
    }
