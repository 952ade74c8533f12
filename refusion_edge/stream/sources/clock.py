"""Placing the time stamps of a source on the clock of this machine, and saying how sure that is.

A frame that arrives at ``a`` with the stamp ``s`` was taken, on the host's clock, at ``s + f(a)``, where ``f`` is the line
below all points ``(a, a - s)``: the frames with the least delay lie on it. Its slope is the rate error of the camera's clock.
Network and decoder delay single frames, never hasten them, so that jitter and bursts stay above the line. The least delay
itself cannot be seen from outside.

Some sources count frames instead of reading a clock: stamp is number times period. Where they leave frames out, their stamps do
not advance, and the line rises by whole periods, for good. Frames that a network held back rise above it, too, but then arrive
densely, and are back on the line within the burst.
"""

from __future__ import annotations

import itertools
import math
import statistics
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from refusion_edge.stream.frames import MS, SECOND

# Origins of the times of frames, as the report names them.
CLOCK_KERNEL = "kernel time of the capture buffer"
CLOCK_STREAM = "time stamps of the stream, mapped to the host clock by the least delay"
CLOCK_ARRIVAL = "host clock at arrival"

_WINDOW_NS, _BUCKET_NS = 20 * SECOND, SECOND // 4
# Quartz is within 1e-4, cheap cameras within 1 %. Stamps that are off by more are counted at a nominal rate.
_MAX_DRIFT = 0.02
# Stamps that were taken for nominal are used again after this long at the right rate.
_TRUST_AGAIN_NS = 10 * SECOND
_JUDGED_AFTER_NS, _JUDGED_AFTER_FRAMES = SECOND * 6 // 10, 6
# Unusable stamps (absent or repeated) in a row after which arrival takes over.
_MAX_UNUSABLE = 8
# A shorter pause is a network that holds frames back, a longer one a camera that sends none.
_LONGEST_STALL_NS = SECOND
_INTERVALS, _MEASURED_EVERY = 32, 8
_SMALLEST_STEP_NS = 8 * MS
# The line rises by a frame left out where a frame is later than this part of a period. A frame after one left out is later
# than a whole period, but for the error of the line; any other is with the probability exp(-period / jitter), which nothing can
# tell at its arrival: 1 % of the frames at a mean jitter of 7 ms and 30 frames per second.
_LEFT_OUT_PART = 0.93
# Frames left out are a number of periods within this part of one.
_GRID_PART = 0.15
# Before that is known, a frame is suspected to follow frames left out if it is later than the last ones by this part.
_JUMP_PART, _COMPARED_FRAMES = 0.7, 4
# So many frames at once are left out. A longer pause may be a network that holds frames back, which the next frame tells.
_LEFT_OUT_AT_ONCE = 2
# Frames that were late, and not after one left out, until stamps are those of a clock after all.
_MOST_MISTAKES = 6
# Frames that arrive within this part of their period were held back.
_DENSE_PART = 0.5
# At the beginning, a frame that comes nearer than its period by this part of it, but at least by this, shows that the ones
# before were held back.
_CATCHING_UP_PART, _LEAST_CATCHING_UP_NS = 0.125, 2 * MS
_LONGEST_BURST_NS = SECOND // 2
# A step back is confirmed by this many frames over this long, none of which is explained by the old clock.
_CONFIRMING_FRAMES, _CONFIRMING_NS = 4, SECOND // 4
# Frames left out are confirmed by as many late frames as jitter like that of the last ones would bring about this rarely.
_LATENESS_FRAMES, _CHANCE = 64, 1e-6
# Without a step in the stamps, the line is raised only after this long above it.
_RAISED_AFTER_NS = 5 * SECOND
_RAISED_ABOVE_NS = 12 * MS
_REPORTED_STEP_NS = 50 * MS
# A point that lies this far below the line after two seconds moves the line without turning it.
_SURPRISE_NS, _SETTLED = 3 * MS, 8
# Stamps on the host's own clock lie this far before the arrival at most, and never after it, but for rounding.
_MAX_SHARED_DELAY_NS, _ROUNDING_NS = 10 * SECOND, MS


@dataclass(frozen=True, slots=True)
class ClockState:
    """What is known about the clock of a source.

    Attributes:
        clock: Origin of the times of its frames, in words.
        rate_error_ppm: Rate error of its stamps against the host's clock; None if they are not used or on the host's clock.
        delay_ms: Median time from the time of a frame to its arrival; for mapped stamps, the delay above the least one. None
            where the arrival itself is used.
        error_ms: How far the times of frames may be off, beside a constant delay, at 95 % of frames; None if unknown.
        steps: How often the stamps stepped.
        epochs: How many clocks there were: steps and reconnections begin a new one.
    """

    clock: str
    rate_error_ppm: float | None = None
    delay_ms: float | None = None
    error_ms: float | None = None
    steps: int = 0
    epochs: int = 1


class SourceClock:
    """Gives each frame of a live source its time on the monotonic clock of this machine.

    The times are those of the stamps as long as these come from a clock. Absent and repeated stamps are filled in. Stamps that
    count frames are carried on over the frames left out. Stamps that are counted at a nominal rate other than that of the
    frames, or do not advance, give way to the arrival. Memory is bounded, and the work for a frame is constant on average.

    Args:
        clock: Origin of the stamps, in words.
        shared: Whether the stamps are said to be on the monotonic clock of this machine. They are used as they are while that
            is plausible.

    Source:
        L. Zhang, Z. Liu, C. H. Xia, "Clock synchronization algorithms for network measurements", INFOCOM 2002: skew from the
        lower convex hull of the delays.
    """

    def __init__(self, clock: str = CLOCK_STREAM, *, shared: bool = False) -> None:
        self._words, self._said_shared, self._unstamped = clock, shared, False
        self._epochs, self._steps = 0, 0
        self._news: list[str] = []
        self._delays_ns: deque[int] = deque(maxlen=2 * _INTERVALS)
        self._last_ns = -1
        self.restart()

    def restart(self) -> None:
        """Begin anew, as after a source was opened again: nothing is known about its clock."""
        self._epochs += 1
        self._shared = self._said_shared
        self._nominal = self._standing = False
        self._settled = False
        self._first_ns = 0
        self._left_out = _LeftOut()
        # How far the last frames lay above the line.
        self._above_ns: deque[int] = deque(maxlen=_LATENESS_FRAMES)
        self._good_since_ns: int | None = None
        self._unusable = 0
        self._line = _LowerLine()
        self._stamps = _Intervals()
        self._arrivals = _Intervals()
        # The last frame with a usable stamp, and the number of frames since.
        self._stamp_ns: int | None = None
        self._stamp_arrived_ns = 0
        self._since_stamp = 0
        self._arrived_ns: int | None = None
        self._suspect: _Suspect | None = None
        self._raised: _Suspect | None = None

    def use_arrival(self) -> None:
        """Use the arrival of each frame, as where the source gives no stamps of a clock."""
        self._words, self._unstamped = CLOCK_ARRIVAL, True

    @property
    def settled(self) -> bool:
        """Whether the time of the last frame is known.

        A source may begin with what it had stored: frames of the last second that arrive at once. How old they are is not
        known before the last of them.
        """
        return self._settled

    def distrust(self) -> None:
        """Take the stamps for those of another clock, as where the driver says so."""
        if self._shared:
            self._shared = False
            self._words = CLOCK_STREAM

    @property
    def state(self) -> ClockState:
        """What is known at present."""
        delay_ms = statistics.median(self._delays_ns) / MS if self._delays_ns else None
        if self._standing:
            clock = f"{CLOCK_ARRIVAL}, as its own time stamps do not advance"
        elif self._nominal:
            clock = f"{CLOCK_ARRIVAL}, as its own time stamps are counted at a nominal rate"
        elif self._left_out.counted:
            clock = f"{self._words}; they count frames, and are carried on by the arrivals where frames are left out"
        else:
            clock = self._words
        if self._uses_arrival:
            return ClockState(clock, None, None, self._arrivals.spread_ms, self._steps, self._epochs)
        if self._shared:
            return ClockState(clock, None, delay_ms, 0.0, self._steps, self._epochs)
        # The slope is that of arrival minus stamp: a camera that runs fast has a falling line.
        rate_error_ppm = None if self._line.span_ns < SECOND else -self._line.slope * 1e6
        return ClockState(clock, rate_error_ppm, delay_ms, self._line.error_ms, self._steps, self._epochs)

    def take_news(self) -> tuple[str, ...]:
        """Events since the last call, in words: steps, stamps that gave way to the arrival."""
        news, self._news = tuple(self._news), []
        return news

    def place(self, stamp_ns: int | None, arrived_ns: int) -> int:
        """Return the time of the next frame on the monotonic clock; it is never after the arrival, and always advances.

        Args:
            stamp_ns: Time stamp of the source, or None if it gives none.
            arrived_ns: Arrival, monotonic clock.
        """
        time_ns = min(self._time_ns(stamp_ns, arrived_ns), arrived_ns)
        self._delays_ns.append(arrived_ns - time_ns)
        self._arrived_ns = arrived_ns
        self._last_ns = max(time_ns, self._last_ns + 1)
        return self._last_ns

    @property
    def _uses_arrival(self) -> bool:
        return self._nominal or self._standing or self._unstamped

    def _time_ns(self, stamp_ns: int | None, arrived_ns: int) -> int:
        before_ns = self._arrived_ns
        if before_ns is not None:
            self._arrivals.add(arrived_ns - before_ns)
        if self._unstamped:
            self._settled = True
            return arrived_ns
        self._since_stamp += 1
        if stamp_ns is None or stamp_ns == self._stamp_ns:
            self._unusable += 1
            if self._unusable == _MAX_UNUSABLE and not self._standing:
                self._standing = self._settled = True
                self._news.append("its time stamps do not advance; the arrival of each frame is used instead")
            return arrived_ns if self._uses_arrival or before_ns is None else self._filled_in(arrived_ns, before_ns)
        if self._standing and self._unusable == 0:
            # Two usable stamps in a row: the clock runs again.
            self._standing = False
            self._stamp_ns, self._line, self._stamps = None, _LowerLine(), _Intervals()
        self._unusable = 0
        if self._shared:
            if -_ROUNDING_NS <= arrived_ns - stamp_ns <= _MAX_SHARED_DELAY_NS:
                self._remember(stamp_ns, arrived_ns)
                self._settled = True
                return stamp_ns
            self.distrust()
            self._news.append("its time stamps are not on the host clock; they are mapped to it by the least delay")
        self._settle(stamp_ns, arrived_ns)
        dense = self._is_dense(stamp_ns, arrived_ns)
        self._compare(stamp_ns, arrived_ns)
        self._remember(stamp_ns, arrived_ns)
        self._take_back(arrived_ns, arrived_ns - stamp_ns, dense=dense)
        offset_ns = self._line.add(arrived_ns, arrived_ns - stamp_ns, rigid=self._in_step)
        self._watch_residual(arrived_ns, arrived_ns - stamp_ns - offset_ns, dense=dense)
        self._judge_rate(arrived_ns)
        return arrived_ns if self._uses_arrival else stamp_ns + self._line.at(arrived_ns)

    def _settle(self, stamp_ns: int, arrived_ns: int) -> None:
        """Forget the frames so far while each one shows that those before were held back."""
        if self._settled:
            return
        if self._stamp_ns is None:
            self._first_ns = arrived_ns
            return
        passed_ns = stamp_ns - self._stamp_ns
        nearer_ns = passed_ns - (arrived_ns - self._stamp_arrived_ns)
        expected = nearer_ns <= max(round(_CATCHING_UP_PART * passed_ns), _LEAST_CATCHING_UP_NS)
        self._settled = expected or arrived_ns - self._first_ns > _LONGEST_BURST_NS
        if not self._settled:
            self._line, self._arrivals = _LowerLine(), _Intervals()

    def _is_dense(self, stamp_ns: int, arrived_ns: int) -> bool:
        """Whether a frame arrives so soon after the one before that it was held back."""
        if self._stamp_ns is None:
            return False
        return arrived_ns - self._stamp_arrived_ns < _DENSE_PART * max(stamp_ns - self._stamp_ns, 0)

    def _filled_in(self, arrived_ns: int, before_ns: int) -> int:
        """Time of a frame without a usable stamp: one period after the frame before, or several after a long pause."""
        period_ns = self._stamps.median_ns or self._arrivals.median_ns
        if not period_ns:
            return arrived_ns
        if arrived_ns - before_ns < _LONGEST_STALL_NS:
            return self._last_ns + period_ns
        return self._last_ns + period_ns * max(1, (arrived_ns - before_ns) // period_ns)

    def _remember(self, stamp_ns: int, arrived_ns: int) -> None:
        if self._stamp_ns is not None and stamp_ns > self._stamp_ns and self._since_stamp == 1:
            self._stamps.add(stamp_ns - self._stamp_ns)
        self._stamp_ns, self._stamp_arrived_ns, self._since_stamp = stamp_ns, arrived_ns, 0

    def _compare(self, stamp_ns: int, arrived_ns: int) -> None:
        """Look for a step: an interval between stamps that fits neither the period nor the arrivals."""
        if self._stamp_ns is None or self._nominal:
            return
        passed_ns, arrival_ns = stamp_ns - self._stamp_ns, arrived_ns - self._stamp_arrived_ns
        period_ns, tolerance_ns = self._stamps.median_ns, self._tolerance_ns
        if period_ns is None:
            if passed_ns < 0:
                self._begin_epoch(passed_ns)
            return
        back_ns = self._since_stamp * period_ns - passed_ns
        if back_ns > tolerance_ns:
            if passed_ns < 0 or back_ns > 4 * period_ns + SECOND // 4:
                # Delays never make stamps go back. The line keeps its place below the points of the new epoch.
                expected_ns = period_ns * max(self._since_stamp, round(arrival_ns / period_ns))
                self._shift(passed_ns - expected_ns)
                self._check(arrived_ns, period_ns)
            else:
                self._suspect = _Suspect(arrived_ns, back_ns)
            return
        if passed_ns > period_ns * 3 // 2 and self._since_stamp == 1:
            self._left_out.show()
        expected_ns = period_ns * max(self._since_stamp, round(arrival_ns / period_ns))
        ahead_ns = passed_ns - expected_ns
        off_grid_ns = abs(passed_ns - period_ns * round(passed_ns / period_ns))
        sure = off_grid_ns > tolerance_ns or ahead_ns > 4 * period_ns + SECOND // 4
        if ahead_ns > max(tolerance_ns, self._arrivals.spread_ns) and sure and arrival_ns < passed_ns:
            self._shift(ahead_ns)
            self._check(arrived_ns, period_ns)

    def _check(self, arrived_ns: int, period_ns: int) -> None:
        """Watch whether a step was taken for one period too long, as jitter has it."""
        self._suspect = _Suspect(arrived_ns, period_ns)

    @property
    def _in_step(self) -> bool:
        """Whether stamps advance about as fast as frames arrive."""
        stamps_ns, arrivals_ns = self._stamps.median_ns, self._arrivals.median_ns
        return stamps_ns is not None and arrivals_ns is not None and abs(stamps_ns - arrivals_ns) * 10 < stamps_ns

    @property
    def _tolerance_ns(self) -> int:
        return max(_SMALLEST_STEP_NS, 5 * self._stamps.deviation_ns)

    def _shift(self, step_ns: int) -> None:
        """Move the line by a step of the stamps, positive forward."""
        self._line.shift(-step_ns)
        self._suspect = self._raised = None
        if abs(step_ns) >= max(_REPORTED_STEP_NS, (self._stamps.median_ns or 0) * 3 // 2):
            self._steps += 1
            self._epochs += 1
            way = "forward" if step_ns > 0 else "back"
            self._news.append(f"its clock stepped {way} by {_seconds(abs(step_ns))}; a new epoch begins")

    def _begin_epoch(self, step_ns: int) -> None:
        self._line = _LowerLine()
        self._shift(step_ns)

    def _watch_residual(self, arrived_ns: int, above_ns: int, *, dense: bool) -> None:
        """Confirm a suspected step back or frames left out, and raise the line where no frame has come near it for long."""
        period_ns = self._stamps.median_ns
        if self._left_out.counted and period_ns is not None:
            self._suspect = None
            if self._carry_on(above_ns, period_ns, dense=dense):
                return
        elif self._suspect is None and period_ns is not None and self._in_step and self._jumped(above_ns, period_ns):
            self._suspect = _Suspect(arrived_ns, period_ns, of_pause=True)
        self._above_ns.append(above_ns)
        suspect = self._suspect
        if suspect is not None:
            suspect.add(above_ns, counts=not (dense and suspect.of_pause))
            if suspect.least_ns < suspect.size_ns // 2:
                self._suspect = None
            elif suspect.frames >= self._frames_to_confirm(suspect) and arrived_ns - suspect.since_ns >= _CONFIRMING_NS:
                if not suspect.of_pause or period_ns is None:
                    self._shift(-min(suspect.size_ns, suspect.least_ns))
                elif self._left_out.confirm(suspect.least_ns, period_ns):
                    self._suspect = None
                    self._news.append(
                        "its time stamps count frames and do not advance where frames are left out; they are carried on by the "
                        "arrivals there"
                    )
                    self._carry_on(above_ns, period_ns, dense=dense)
                else:
                    self._shift(-suspect.least_ns)
            return
        if self._raised is None or above_ns < _RAISED_ABOVE_NS:
            self._raised = _Suspect(arrived_ns, 0) if above_ns >= _RAISED_ABOVE_NS else None
        if self._raised is not None:
            self._raised.add(above_ns)
            if arrived_ns - self._raised.since_ns >= _RAISED_AFTER_NS:
                self._line.restart_from(self._raised.since_ns)
                self._raised = None

    def _frames_to_confirm(self, suspect: _Suspect) -> int:
        if not suspect.of_pause:
            return _CONFIRMING_FRAMES
        # Delays fall off exponentially: half of the changes from frame to frame exceed the mean delay times log 2. Unlike the
        # delays, their changes do not depend on where the line is.
        changes_ns = [abs(after - before) for before, after in itertools.pairwise(self._above_ns)]
        jitter_ns = max(statistics.median(changes_ns) / math.log(2), MS) if changes_ns else MS
        return max(_CONFIRMING_FRAMES, math.ceil(-math.log(_CHANCE) * jitter_ns / (suspect.size_ns / 2)))

    def _jumped(self, above_ns: int, period_ns: int) -> bool:
        """Whether a frame is later than those before it by about a period or more, as after frames that were left out."""
        before = list(itertools.islice(reversed(self._above_ns), _COMPARED_FRAMES))
        return bool(before) and above_ns - max(0, min(before)) > _JUMP_PART * period_ns

    def _carry_on(self, above_ns: int, period_ns: int, *, dense: bool) -> bool:
        """Raise the line by the frames left out before this one, unless it was held back."""
        count = 0 if dense else max(0, int(above_ns / period_ns + 1 - _LEFT_OUT_PART))
        count = self._left_out.count(count)
        self._left_out.raised_ns = count * period_ns
        if count:
            self._line.shift(count * period_ns)
            self._raised = None
        return count > 0

    def _take_back(self, arrived_ns: int, above_ns: int, *, dense: bool) -> None:
        """Lower the line again where a frame shows that the one before was late, and none was left out."""
        period_ns = self._stamps.median_ns
        if not self._left_out.counted or period_ns is None or not self._line.frames:
            return
        back_ns = self._left_out.raised_ns if dense else 0
        count = max(0, round((self._line.at(arrived_ns) - back_ns - above_ns) / period_ns))
        if back_ns or count:
            self._line.shift(-back_ns - count * period_ns)
            self._left_out.mistake()

    def _judge_rate(self, arrived_ns: int) -> None:
        """Decide whether the stamps are read from a clock or counted at a nominal rate."""
        line = self._line
        if self._suspect is not None and self._suspect.of_pause:
            return
        if line.frames < _JUDGED_AFTER_FRAMES or line.span_ns < _JUDGED_AFTER_NS:
            return
        off_ns = (abs(line.free_slope) - _MAX_DRIFT) * line.span_ns
        if not self._nominal:
            if off_ns > 3 * line.free_error_ns + 2 * self._arrivals.spread_ns + 20 * MS:
                self._nominal, self._good_since_ns = True, None
                self._news.append(
                    f"its time stamps run {1 - line.free_slope:.2f} times as fast as the host clock, so they are nominal; the "
                    "arrival of each frame is used instead"
                )
                self._line = _LowerLine()
            return
        if off_ns > 0 or line.free_error_ns > 20 * MS or line.span_ns < _TRUST_AGAIN_NS:
            return
        self._nominal = False
        self._news.append("its time stamps keep up with the host clock again; they are used")


def _seconds(time_ns: int) -> str:
    return f"{time_ns / SECOND:.1f} s" if time_ns >= SECOND else f"{time_ns / MS:.0f} ms"


class _Intervals:
    """The last intervals between stamps or arrivals, in ns."""

    def __init__(self) -> None:
        self._values: deque[int] = deque(maxlen=_INTERVALS)
        self._sorted: list[int] = []
        self._deviations: list[int] = []
        self._since_measured = 0

    def add(self, interval_ns: int) -> None:
        if len(self._values) == _INTERVALS:
            del self._sorted[bisect_left(self._sorted, self._values[0])]
        self._values.append(interval_ns)
        insort(self._sorted, interval_ns)
        self._since_measured += 1
        if self._since_measured >= _MEASURED_EVERY or len(self._values) < _MEASURED_EVERY:
            middle = self._sorted[len(self._sorted) // 2]
            self._deviations = sorted(abs(value - middle) for value in self._sorted)
            self._since_measured = 0

    @property
    def median_ns(self) -> int | None:
        return self._sorted[len(self._sorted) // 2] if len(self._sorted) >= 2 else None

    @property
    def deviation_ns(self) -> int:
        """Median distance from the median."""
        return self._deviations[len(self._deviations) // 2] if self._deviations else 0

    @property
    def spread_ns(self) -> int:
        """Distance from the median that 19 of 20 intervals keep."""
        return self._deviations[len(self._deviations) * 19 // 20] if self._deviations else 0

    @property
    def spread_ms(self) -> float | None:
        return self.spread_ns / MS if self._deviations else None


class _Suspect:
    """A possible step back, and how far the frames since lie above the line."""

    def __init__(self, since_ns: int, size_ns: int, *, of_pause: bool = False) -> None:
        self.since_ns, self.size_ns, self.of_pause = since_ns, size_ns, of_pause
        self.frames, self.least_ns = 0, size_ns

    def add(self, above_ns: int, *, counts: bool = True) -> None:
        self.least_ns = min(self.least_ns, above_ns) if self.frames else above_ns
        self.frames += counts


class _LeftOut:
    """Whether stamps count frames, by what they do where frames are left out.

    Attributes:
        counted: Whether they do.
        raised_ns: By how much the line was raised at the last frame.
    """

    def __init__(self) -> None:
        self.counted = False
        self.raised_ns = 0
        self._gaps = self._mistakes = 0
        self._paused = False

    def show(self) -> None:
        """The stamps advanced over a gap: they are those of a clock."""
        self.counted = False

    def confirm(self, step_ns: int, period_ns: int) -> bool:
        """Frames stay late by ``step_ns``; tells whether that is a number of periods, which makes the stamps counted ones."""
        count = max(1, round(step_ns / period_ns))
        self.counted = abs(step_ns - count * period_ns) <= _GRID_PART * period_ns
        self._gaps = self._mistakes = 0
        return self.counted

    def count(self, count: int) -> int:
        """How many of the frames that seem to be left out before this one are taken for that."""
        if count > _LEFT_OUT_AT_ONCE and not self._paused:
            self._paused = True
            return 0
        self._paused = False
        self._gaps += count > 0
        return count

    def mistake(self) -> None:
        """A frame was late, and none was left out before it. Where most are, the stamps are those of a clock."""
        self._mistakes += 1
        if self._mistakes >= _MOST_MISTAKES:
            self.counted = 4 * self._mistakes <= 3 * self._gaps
            self._gaps, self._mistakes = self._gaps // 2, self._mistakes // 2


class _LowerLine:
    """The line below the points (arrival, arrival minus stamp) of the last 20 s, in ns.

    The points are reduced to the lowest of each quarter of a second.
    """

    def __init__(self) -> None:
        self.slope = self.free_slope = 0.0
        self.free_error_ns = 0
        self.frames = 0
        self._origin: tuple[int, int] | None = None
        self._closed: deque[tuple[int, int]] = deque()
        self._lowest: tuple[int, int] = (0, 0)
        self._bucket = 0
        self._intercept = 0.0

    @property
    def span_ns(self) -> int:
        """Time from the first point to the last."""
        return self._lowest[0] - self._closed[0][0] if self._closed else 0

    @property
    def error_ms(self) -> float | None:
        """How far the line may be off at 95 % of frames; None before there are points to judge by."""
        return None if len(self._closed) < 4 else (3 * self.free_error_ns + MS) / MS

    def add(self, x_ns: int, y_ns: int, *, rigid: bool) -> int:
        """Add a point and keep below it; returns the line at ``x_ns``.

        A point far below is a step forward, or the end of a long delay. Neither tells anything about the slope, so that the
        points before are moved along if the line is said to be ``rigid``.
        """
        if self._origin is None:
            self._origin, self._intercept = (x_ns, y_ns), 0.0
            self._lowest = (0, 0)
        x, y = x_ns - self._origin[0], y_ns - self._origin[1]
        if x // _BUCKET_NS != self._bucket and self.frames:
            self._closed.append(self._lowest)
            while x - self._closed[0][0] > _WINDOW_NS and len(self._closed) > 1:
                self._closed.popleft()
            self._fit()
            self._bucket, self._lowest = x // _BUCKET_NS, (x, y)
        elif self._above(x, y) < self._above(*self._lowest):
            self._lowest = (x, y)
        self.frames += 1
        below = self._intercept - self._above(x, y)
        if rigid and below > _SURPRISE_NS and len(self._closed) >= _SETTLED:
            self._closed = deque((a, b - round(below)) for a, b in self._closed)
        self._intercept = min(self._intercept, self._above(x, y))
        return self.at(x_ns)

    def at(self, x_ns: int) -> int:
        """The line at ``x_ns``."""
        assert self._origin is not None
        return self._origin[1] + round(self._intercept + self.slope * (x_ns - self._origin[0]))

    def shift(self, y_ns: int) -> None:
        """Move the line and all points."""
        self._closed = deque((x, y + y_ns) for x, y in self._closed)
        self._lowest = (self._lowest[0], self._lowest[1] + y_ns)
        self._intercept += y_ns

    def restart_from(self, x_ns: int) -> None:
        """Forget the points before ``x_ns``, and raise the line to those that are left."""
        assert self._origin is not None
        since = x_ns - self._origin[0]
        self._closed = deque(point for point in self._closed if point[0] >= since)
        self._intercept = min(self._above(*point) for point in (*self._closed, self._lowest))

    def _above(self, x: int, y: int) -> float:
        return y - self.slope * x

    def _fit(self) -> None:
        points = list(self._closed)  # the bucket just begun may hold a late frame only
        self.free_slope = _slope_below(points) if len(points) >= 3 else 0.0
        residuals = sorted(y - self.free_slope * x for x, y in points)
        self.free_error_ns = round(residuals[len(residuals) // 2] - residuals[0])
        self.slope = max(-_MAX_DRIFT, min(_MAX_DRIFT, self.free_slope))
        self._intercept = min(self._above(*point) for point in points)


def _slope_below(points: list[tuple[int, int]]) -> float:
    """Slope of the edge of the lower convex hull below the middle of the points, which are in order of x."""
    hull: list[tuple[int, int]] = []
    for x, y in points:
        while len(hull) >= 2:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (x - x0) * (y1 - y0):
                break
            hull.pop()
        hull.append((x, y))
    middle = sum(x for x, _ in points) / len(points)
    for (x0, y0), (x1, y1) in itertools.pairwise(hull):
        if x1 >= middle:
            return (y1 - y0) / (x1 - x0)
    return 0.0
