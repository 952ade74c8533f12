"""Epochs: recorded clocks that were set while they recorded.

The times of files are those of the clock that wrote them. When it is set back, as the time of day is by a time server, its
later frames would seem older than its earlier ones.
"""

from __future__ import annotations

from refusion_edge.stream.frames import SECOND, Frame, Side, other

# A smaller step back is a wrong stamp of one frame, which pairing leaves out.
_LEAST_STEP_NS = SECOND // 5
_PERIODS = 4
# A gap this long in the frames of a file is worth a word.
_LONG_GAP_NS = 10 * SECOND
_UNKNOWN_PERIOD_NS = SECOND // 30


class Epochs:
    """Moves the frames after a step back so that time goes on, the same for both sources if both clocks step alike.

    Deterministic: the same frames in the same order get the same times.
    """

    def __init__(self) -> None:
        self.count: dict[Side, int] = {"ir": 1, "vis": 1}
        self._moved_by_ns: dict[Side, int] = {"ir": 0, "vis": 0}
        # What was added before the last step, and how much that step added.
        self._before_ns: dict[Side, int | None] = {"ir": None, "vis": None}
        self._steps_ns: dict[Side, list[int]] = {"ir": [], "vis": []}
        self._last_ns: dict[Side, int | None] = {"ir": None, "vis": None}
        self._period_ns: dict[Side, int] = {"ir": _UNKNOWN_PERIOD_NS, "vis": _UNKNOWN_PERIOD_NS}
        self._news: list[tuple[Side, str]] = []

    def take_news(self) -> list[tuple[Side, str]]:
        """Steps and long gaps since the last call, in words, with their source."""
        news, self._news = self._news, []
        return news

    def place(self, frame: Frame) -> Frame:
        """Return the next frame of either source with a time that goes on from the one before."""
        side, last_ns = frame.side, self._last_ns[frame.side]
        moved_by_ns = self._moved_by_ns[side]
        time_ns = frame.time_ns + moved_by_ns
        if last_ns is not None:
            period_ns = self._period_ns[side]
            before_ns = self._before_ns[side]
            if time_ns < last_ns - max(_LEAST_STEP_NS, _PERIODS * period_ns):
                moved_by_ns += self._step(side, last_ns + period_ns - time_ns)
            elif (
                before_ns is not None
                and time_ns > last_ns + _PERIODS * period_ns
                and 0 < frame.time_ns + before_ns - last_ns <= _PERIODS * period_ns
            ):
                # Only single frames had a wrong stamp: the old clock goes on.
                self._moved_by_ns[side], self._before_ns[side] = before_ns, None
                self._steps_ns[side].pop()
                moved_by_ns = before_ns
            elif time_ns > last_ns + _LONG_GAP_NS:
                self._news.append((side, f"no frames for {(time_ns - last_ns) / SECOND:.1f} s by its time stamps"))
            time_ns = frame.time_ns + moved_by_ns
            if 0 < time_ns - last_ns < SECOND:
                self._period_ns[side] += (time_ns - last_ns - period_ns) // 8
        self._last_ns[side] = time_ns if last_ns is None else max(time_ns, last_ns)
        return frame.moved(moved_by_ns) if self.count[side] > 1 else frame

    def _step(self, side: Side, step_ns: int) -> int:
        """Begin an epoch; returns what is added to its times, that of the other source if it stepped alike."""
        mine, theirs = self._steps_ns[side], self._steps_ns[other(side)]
        tolerance_ns = 2 * (self._period_ns["ir"] + self._period_ns["vis"])
        if len(theirs) > len(mine) and abs(theirs[len(mine)] - step_ns) <= tolerance_ns:
            step_ns = theirs[len(mine)]
        mine.append(step_ns)
        self.count[side] += 1
        self._before_ns[side] = self._moved_by_ns[side]
        self._moved_by_ns[side] += step_ns
        self._news.append((side, f"its clock stepped back by {step_ns / SECOND:.1f} s; a new epoch begins"))
        return step_ns
