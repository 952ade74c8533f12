"""Replay of a recording as a source of pairs."""

from __future__ import annotations

import threading

from refusion_edge.stream.frames import Pair
from refusion_edge.stream.outputs.recording import Recording
from refusion_edge.stream.pairing.epochs import Epochs
from refusion_edge.stream.run.pairing import Decisions
from refusion_edge.stream.sources.source import CLOCK_RECORDED
from refusion_edge.stream.statistics import Statistics


class ReplaySource:
    """Pairs the frames of a recording with the same decisions, and leaves out the pairs that were not shown.

    Implements ``PairSource``.

    Args:
        recording: The recording.
        decisions: Pairs its frames.
        statistics: Counters of the run.
        stop: Ends the run.
    """

    def __init__(self, recording: Recording, decisions: Decisions, statistics: Statistics, stop: threading.Event) -> None:
        self._recording, self._decisions, self._statistics, self._stop = recording, decisions, statistics, stop

    def run(self) -> None:
        """See ``PairSource.run``.

        Raises:
            InputError: An image is missing or damaged.
        """
        if self._recording.lost:
            self._statistics.note(
                "recording",
                f"{self._recording.lost} frames or pairs are missing, so this replay differs from the run that was recorded",
            )
        if self._recording.late:
            self._statistics.note(
                "recording", "its beginning was removed to stay below its limit, so this replay shows every pair that remains"
            )
        epochs = Epochs()
        for number in range(len(self._recording.rows)):
            if self._stop.is_set():
                return
            frame = epochs.place(self._recording.read(number))
            self._statistics.delivered(frame.side, frame.size_wh, str(frame.image.dtype), time_ns=frame.time_ns)
            self._statistics.followed(epochs.count, epochs.take_news())
            self._statistics.cameras[frame.side].frozen_frames += frame.stale_ns > 0
            self._hand_on(self._decisions.push(frame))
        self._hand_on(self._decisions.flush())
        for camera in self._statistics.cameras.values():
            camera.state, camera.clock = "ended", CLOCK_RECORDED
        self._decisions.close()

    def _hand_on(self, pairs: tuple[Pair, ...]) -> None:
        for pair in pairs:
            if pair.number in self._recording.not_shown:
                self._statistics.dropped("pair", "engine busy")
            elif self._recording.end is not None and pair.number >= self._recording.end:
                self._statistics.dropped("pair", "stopped")
            else:
                self._decisions.hand_on(pair)
