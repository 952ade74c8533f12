"""The pipeline of a running stream: threads, bounded queues, and an orderly end.

    reader ir  ─┐                               ┌─ writer 1
                ├─ pairing ── fusion ───────────┤
    reader vis ─┘     └─ recorder               └─ writer 2 ...

With cameras, a full queue drops its oldest item, so that latency is bounded and the newest pair wins; with files, every queue
waits. A thread that fails passes its error to the main thread and stops the run; every wait is bounded.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, OutputError, RefusionError, SourceLostError, StreamError
from refusion_edge.images.luma import CONSTANT_REMEDY
from refusion_edge.stream.frames import SIDES, Side
from refusion_edge.stream.outputs.recording import FrameRecorder, Recording
from refusion_edge.stream.outputs.sinks import Sink
from refusion_edge.stream.pairing.failover import Failover
from refusion_edge.stream.processing.processor import Processor
from refusion_edge.stream.run.channel import Channel, Inbox
from refusion_edge.stream.run.fusion import FusionStage
from refusion_edge.stream.run.networks import NetworkChooser, NetworkPlan
from refusion_edge.stream.run.pairing import CameraPairs, Decisions, PairSource, WaitingPair
from refusion_edge.stream.run.reader import Reader
from refusion_edge.stream.run.refinement import RigFollower, RigRefiner
from refusion_edge.stream.run.replay import ReplaySource
from refusion_edge.stream.run.tap import Tap
from refusion_edge.stream.run.watchdog import Watchdog
from refusion_edge.stream.run.writer import RecordWriter, Writer
from refusion_edge.stream.sources.source import Source
from refusion_edge.stream.statistics import RECORDING, Statistics

_LIVE_PAIRS, _FILE_PAIRS = 1, 4
_POLL_S = 0.1
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class RunLimits:
    """When a run ends.

    Attributes:
        give_up_s: Time without a frame of either camera after which the run ends with ``SourceLostError``.
        duration_s: End after this time, or None.
        frames: End after this many fused frames, or None.
    """

    give_up_s: float = 30.0
    duration_s: float | None = None
    frames: int | None = None


class Pipeline:
    """One run from sources, or a recording, to outputs.

    Args:
        sources: The two cameras, not entered yet; or a recording to replay.
        failover: Decides which frames are shown together.
        processor: Fuses the pairs; its smoothing state belongs to this run.
        sinks: Outputs, not entered yet.
        statistics: Counters of the run.
        limits: When it ends.
        recorder: Records the raw frames of cameras and files, or None.
        refiner: Follows slow changes of the rig, or None. With cameras it runs in parallel with the engine; with files the
            engine waits for it, so that the same files give the same fused frames.
        networks: Decides which network the pairs are fused by, already entered; or None if it stays.
        tap: Hands the fused frames to a Python program as well, or None.
        hashed: Whether to hash the fused frames, so that two runs can be compared.
        stop: Set it from any thread to end the run as after a signal.
        watchdog: Told about the run; None for that of systemd.
    """

    def __init__(
        self,
        sources: tuple[Source, Source] | Recording,
        failover: Failover,
        processor: Processor,
        sinks: Sequence[Sink],
        statistics: Statistics,
        *,
        limits: RunLimits | None = None,
        recorder: FrameRecorder | None = None,
        refiner: RigRefiner | None = None,
        networks: NetworkPlan | None = None,
        tap: Tap | None = None,
        hashed: bool = False,
        stop: threading.Event | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.stop = stop = stop or threading.Event()
        self._limits, self._processor = limits or RunLimits(), processor
        cameras = () if isinstance(sources, Recording) else sources
        self._live = live = any(source.live for source in cameras)
        self._inbox = Inbox(live=live, offset_ns=failover.offset_ns)
        self._readers = [
            Reader(source, self._inbox, statistics, stop, used=_used_part(processor, source.side)) for source in cameras
        ]
        self._pairs: Channel[WaitingPair] = Channel(_LIVE_PAIRS if live else _FILE_PAIRS, lossless=not live)
        self._record = None if recorder is None else RecordWriter(recorder, statistics, live=live)
        decisions = Decisions(failover, self._pairs, statistics, stop, used=_used_part(processor, "vis"))
        self._pairing: PairSource = (
            ReplaySource(sources, decisions, statistics, stop)
            if isinstance(sources, Recording)
            else CameraPairs(self._inbox, decisions, statistics, self._record)
        )
        self._follower = None if refiner is None else RigFollower(refiner, beside=live)
        self._writers = [Writer(sink, statistics, stop, live=live) for sink in sinks]
        self._tap = tap
        if tap is not None:
            tap.attach(statistics, live=live, shared=bool(sinks))
        self._fusion = FusionStage(
            self._pairs, processor, [*self._writers, *([] if tap is None else [tap])], statistics, stop,
            frames=self._limits.frames, follower=self._follower, networks=networks, hashed=hashed,
            why_ended=self._why_sources_ended,
        )  # fmt: skip
        self._networks = networks
        self._statistics = statistics
        self._watchdog = watchdog or Watchdog()
        self._ended = self._interrupted = False
        self._failure: BaseException | None = None
        self._failed = threading.Lock()

    @property
    def sha256(self) -> str | None:
        """SHA-256 of all fused frames so far, or None if they are not hashed."""
        return self._fusion.sha256

    def run(self) -> None:
        """Run until the sources end, a limit is reached, ``stop`` is set, or something fails.

        Raises:
            KeyboardInterrupt: A signal arrived; everything is closed by then.
            RefusionError: A source, an output or the engine failed, a file is damaged in part, or nothing could be
                shown; everything is closed by then.
        """
        with contextlib.ExitStack() as stack:
            for reader in self._readers:
                # Its own thread leaves it and may open it again; leaving twice is harmless.
                stack.callback(reader.source.__exit__, None, None, None)
                reader.source.__enter__()
            for writer in self._writers:
                stack.enter_context(writer.sink)
            if self._record is not None:
                stack.enter_context(self._record.recorder)
            threads = [self._thread(name, work) for name, work in self._work()]
            try:
                for thread in threads:
                    thread.start()
                self._wait(threads)
            finally:
                self._watchdog.stop()
                self._end()
                stuck = self._join(threads)
                self._finish_recording()
        if self._failure is not None:
            raise self._failure
        if stuck:
            raise StreamError(f"parts of the stream did not end within {_STOP_S:g} s: {', '.join(stuck)}", "start it again")
        if failures := self._failures():
            raise failures[0]
        if not self._fusion.count and not self._interrupted:
            raise self._fusion.refused or self._nothing_shown()
        if not self._live:
            self._require_contrast()

    def _failures(self) -> list[RefusionError]:
        """What was wrong with files that could be used in part."""
        return [reader.failure for reader in self._readers if reader.failure is not None]

    def _why_sources_ended(self) -> str:
        failures = self._failures()
        return failures[0].problem if failures else "its sources have ended"

    def _finish_recording(self) -> None:
        if self._record is not None:
            try:
                used = [] if self._networks is None else self._networks.used
                self._record.recorder.finish(self._fusion.end, used, self._statistics.drops_of(RECORDING))
            except OutputError as error:
                self._fail(error)

    def _nothing_shown(self) -> InputError:
        """Why no pair of frames could be fused, by what is known of either camera."""
        figures = self._statistics.snapshot()
        found = []
        for side in SIDES:
            drops = ", ".join(f"{count} {cause}" for cause, count in figures["cameras"][side]["drops"].items())
            found.append(f"{side} {figures['cameras'][side]['in']} frames{f' ({drops})' if drops else ''}")
        return InputError(
            f"no frames could be fused: {'; '.join(found)}",
            "compare the times of the two sources; --offset-ms shifts those of infrared, --max-skew-ms allows more",
        )

    def _require_contrast(self) -> None:
        """A camera may be covered for as long as it runs; a file that shows nothing is not what the user wanted."""
        for reader in self._readers:
            if reader.source.side in self._processor.flat:
                raise InputError(
                    f"every frame of {reader.source.uri} that was used has the same value in every pixel", CONSTANT_REMEDY
                )

    def _work(self) -> list[tuple[str, Callable[[], None]]]:
        work: list[tuple[str, Callable[[], None]]] = [(f"reader {each.source.side}", each.run) for each in self._readers]
        work += [("pairing", self._pairing.run), ("engine", self._fuse)]
        if self._record is not None:
            work.append(("recorder", self._record.run))
        if self._follower is not None and self._live:
            work.append(("refinement", self._follower.run))
        if isinstance(self._networks, NetworkChooser):
            work.append(("networks", self._networks.run))
        return work + [(f"output {each.sink.name}", each.run) for each in self._writers]

    def _fuse(self) -> None:
        self._fusion.run()
        if self._fusion.reached_its_limit:
            # Outputs finish their queues before the limit ends the run.
            deadline_s = time.monotonic() + _STOP_S
            while any(map(len, self._writers)) and time.monotonic() < deadline_s and not self.stop.is_set():
                time.sleep(_POLL_S / 10)
            self._end()

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # any error is passed to the main thread
                self._fail(error)
                self._end()

        return threading.Thread(target=guarded, name=name, daemon=True)

    def _wait(self, threads: Sequence[threading.Thread]) -> None:
        started_s = time.monotonic()
        while any(thread.is_alive() for thread in threads) and not self.stop.wait(_POLL_S):
            now_s = time.monotonic()
            self._watchdog.watch(self._fusion.count, waiting=len(self._pairs) > 0)
            if self._limits.duration_s is not None and now_s - started_s >= self._limits.duration_s:
                self._statistics.ends(f"it was to end after {self._limits.duration_s:g} s")
                return
            delivered_s = max((reader.delivered_s for reader in self._readers), default=0.0)
            if self._live and now_s - max(started_s, delivered_s) >= self._limits.give_up_s:
                self._fail(
                    SourceLostError(f"neither camera sent a frame for {self._limits.give_up_s:g} s", "check cables and power")
                )
                return

    def _fail(self, error: BaseException) -> None:
        """Keep the first error, which causes the later ones."""
        with self._failed:
            self._failure = self._failure or error
        self._statistics.ends(error.problem if isinstance(error, RefusionError) else "the program failed")

    def _end(self) -> None:
        """Stop every thread: queues accept nothing more, and outputs write what they still hold."""
        with self._failed:
            if not self._ended:
                # Whoever holds `stop` may set it; that nothing was shown by then is no error.
                self._ended, self._interrupted = True, self.stop.is_set()
        self._statistics.ends("it was stopped")
        self.stop.set()
        self._inbox.close()
        self._pairs.close()
        if self._follower is not None:
            self._follower.close()
        if self._networks is not None:
            self._networks.close()
        for writer in self._writers:
            writer.close()
        if self._tap is not None:
            self._tap.close()

    def _join(self, threads: Sequence[threading.Thread]) -> list[str]:
        deadline_s = time.monotonic() + _STOP_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline_s - time.monotonic()))
        return [thread.name for thread in threads if thread.is_alive()]


def _used_part(processor: Processor, side: Side) -> Callable[[Array], Array]:
    """Takes from a frame of a camera the part that the rig shows."""
    warp = processor.first_warp
    if warp is None:
        return lambda image: image
    return warp.ir.used if side == "ir" else warp.vis.used
