"""Pairing two cameras by the time at which their frames were taken.

``Pairer`` depends only on the frames pushed into it, without a clock, threads or pixels. The same frames in the same order
give the same pairs, live and in a replay.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

from refusion_edge.errors import UsageError
from refusion_edge.stream.frames import MS, SECOND, SIDES, Frame, Pair, Side, other

Policy = Literal["nearest", "hold", "drop"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

# Why a frame is part of no pair, as the report names it.
NO_COUNTERPART = "no counterpart within the skew"
TIME_WENT_BACK = "time stamp went back or stood still"

# Short, so that a camera that slows down in the dark is noticed within seconds.
_WINDOW = 16
_TRUSTED_INTERVALS = 4
# Two cameras at equal rates may be half a period apart; another tenth of a period allows for jitter.
_SKEW_OF_PERIOD = 0.6
_UNKNOWN_SKEW_NS = SECOND // 60
# Rates within this ratio count as equal, and the visible camera leads.
_EQUAL_RATES = 1.2
# The leader changes only if the rates differ by this much more, so that it does not alternate.
_CLEARLY = 1.1
# A silent camera is waited for by this many frames, or longer if the offset says that its frames come later.
_MIN_WAITING, _WAIT_NS, _MAX_WAITING_BYTES = 32, SECOND, 1 << 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """Decisions that one more frame led to.

    Attributes:
        pairs: Pairs, in order of time.
        dropped: Frames that will be part of no pair, each with the reason.
    """

    pairs: tuple[Pair, ...] = ()
    dropped: tuple[tuple[Frame, str], ...] = ()


class RateEstimate:
    """Median of the last 16 intervals between the frames of one camera."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._intervals_ns: deque[int] = deque(maxlen=_WINDOW)

    def add(self, time_ns: int) -> None:
        """Add the time of a frame."""
        if self._last_ns is not None:
            self._intervals_ns.append(time_ns - self._last_ns)
        self._last_ns = time_ns

    @property
    def trusted(self) -> bool:
        """Whether there are enough intervals for a decision."""
        return len(self._intervals_ns) >= _TRUSTED_INTERVALS

    @property
    def period_ns(self) -> int | None:
        """Median interval, or None before the second frame."""
        return int(statistics.median(self._intervals_ns)) if self._intervals_ns else None

    @property
    def shortest_ns(self) -> int | None:
        """Shortest interval, or None before the second frame."""
        return min(self._intervals_ns, default=None)


class Pairer:
    """Pairs the frames of two cameras.

    Policies:

    * ``drop``: one to one. A frame is part of at most one pair; a frame without a counterpart within the maximum skew is
      dropped.
    * ``nearest``: every frame of the faster camera is paired with the nearest frame of the slower one within the maximum skew,
      so a slow frame may be used several times.
    * ``hold``: every frame of the faster camera is paired with the latest frame of the slower one, without waiting for a nearer
      one. Beyond the maximum skew, up to the maximum age, the pair is marked as held.

    Pairs never go back in time on either side and never exceed the limit of their policy. A pair is made as soon as the period
    of a camera shows that its next frame will be farther away.

    Args:
        policy: One of ``POLICIES``.
        max_skew_ns: Maximum time difference in a pair; None for 0.6 of the measured period of the faster camera.
        max_age_ns: Maximum time difference in a held pair.
        max_wait_ns: How long frames wait for those of the other camera, by their times.

    Raises:
        UsageError: The policy is unknown, or a limit is negative.
    """

    def __init__(
        self,
        policy: Policy = "nearest",
        *,
        max_skew_ns: int | None = None,
        max_age_ns: int = SECOND // 2,
        max_wait_ns: int = _WAIT_NS,
    ) -> None:
        if policy not in POLICIES:
            raise UsageError(
                f"there is no pairing policy '{policy}'",
                f"choose one of {', '.join(POLICIES)}",
                expected=tuple(POLICIES),
                got=policy,
            )
        if (max_skew_ns or 0) < 0 or max_age_ns < 0:
            raise UsageError(
                f"the maximum skew ({(max_skew_ns or 0) / MS:g} ms) and age ({max_age_ns / MS:g} ms) cannot be negative",
                "choose at least 0 ms",
            )
        self.policy = policy
        self.max_age_ns = max_age_ns
        self._asked_skew_ns = max_skew_ns
        self._max_wait_ns = max_wait_ns
        self._waiting: dict[Side, deque[Frame]] = {side: deque() for side in SIDES}
        self._rates = {side: RateEstimate() for side in SIDES}
        self._latest_ns: dict[Side, int | None] = dict.fromkeys(SIDES)
        self._leader: Side | None = None
        self._last_led: Frame | None = None
        # Slower camera under `nearest` and `hold`: the last frame, which may be used again, and whether it was used.
        self._kept: Frame | None = None
        self._kept_used = False
        self._number = 0

    @property
    def leader(self) -> Side | None:
        """The camera whose every frame is paired under ``nearest`` and ``hold``; None until the rates are known."""
        return self._leader

    @property
    def max_skew_ns(self) -> int:
        """The current limit in ns: the one given, or the measured one."""
        if self._asked_skew_ns is not None:
            return self._asked_skew_ns
        periods = [rate.period_ns for rate in self._rates.values()]
        known = [period for period in periods if period is not None]
        return int(_SKEW_OF_PERIOD * min(known)) if len(known) == len(periods) else _UNKNOWN_SKEW_NS

    def push(self, frame: Frame) -> Outcome:
        """Accept the next frame of either camera, in order of arrival."""
        time_ns, latest_ns = frame.time_ns, self._latest_ns[frame.side]
        if latest_ns is not None and time_ns <= latest_ns:
            return Outcome(dropped=((frame, TIME_WENT_BACK),))
        self._latest_ns[frame.side] = time_ns
        self._rates[frame.side].add(time_ns)
        self._waiting[frame.side].append(frame)
        self._choose_leader()
        return self._decide(final=False)

    def flush(self) -> Outcome:
        """Decide on all waiting frames at the end of the stream."""
        outcome = self._decide(final=True)
        left = [frame for side in SIDES for frame in self._waiting[side]]
        if self._kept is not None and not self._kept_used:
            left.append(self._kept)
        for side in SIDES:
            self._waiting[side].clear()
        self._kept, self._kept_used = None, False
        return Outcome(outcome.pairs, (*outcome.dropped, *((frame, NO_COUNTERPART) for frame in left)))

    def forget(self, side: Side) -> Outcome:
        """Flush what waits for a lost camera; its clock and its rate may differ when it comes back."""
        outcome = self.flush()
        self._latest_ns[side] = None
        self._rates[side] = RateEstimate()
        self._leader = self._last_led = None
        return outcome

    def _choose_leader(self) -> None:
        """Let the faster camera lead, the visible one at equal rates; when the rates change, so does the leader."""
        if self.policy == "drop" or not all(rate.trusted for rate in self._rates.values()):
            return
        ir_ns, vis_ns = self._rates["ir"].period_ns or 0, self._rates["vis"].period_ns or 0
        margin = {"ir": 1 / _CLEARLY, "vis": _CLEARLY, None: 1.0}[self._leader]
        leader: Side = "ir" if ir_ns * _EQUAL_RATES * margin < vis_ns else "vis"
        if leader == self._leader:
            return
        if self._leader is not None:
            # The last frame of the former leader may be used again; an unused one of the new leader is to be decided on.
            if self._kept is not None and not self._kept_used:
                self._waiting[leader].appendleft(self._kept)
            self._kept, self._kept_used = self._last_led, True
        self._leader, self._last_led = leader, None

    def _decide(self, *, final: bool) -> Outcome:
        pairs: list[Pair] = []
        dropped: list[tuple[Frame, str]] = []
        # Until the rates are known, `nearest` and `hold` pair one to one.
        step = self._match_one_to_one if self._leader is None else self._match_leader
        while step(pairs, dropped, final=final):
            pass
        return Outcome(tuple(pairs), tuple(dropped))

    def _match_one_to_one(self, pairs: list[Pair], dropped: list[tuple[Frame, str]], *, final: bool) -> bool:
        """Decide on the earliest waiting frame; False if the decision has to wait."""
        if not all(self._waiting.values()):
            return self._drop_overflow(dropped)
        first: Side = min(SIDES, key=lambda side: self._waiting[side][0].time_ns)
        second = other(first)
        early, late = self._waiting[first][0], self._waiting[second][0]
        gap_ns = late.time_ns - early.time_ns
        better = self._is_followed_by_better(first, late.time_ns, gap_ns)
        if better is None and not final and gap_ns <= self.max_skew_ns:
            return self._drop_overflow(dropped)
        self._waiting[first].popleft()
        if better or gap_ns > self.max_skew_ns:
            dropped.append((early, NO_COUNTERPART))
        else:
            self._waiting[second].popleft()
            pairs.append(self._pair(early, late))
        return True

    def _is_followed_by_better(self, side: Side, time_ns: int, gap_ns: int) -> bool | None:
        """Whether the second waiting frame is nearer to a time; None if it has not arrived yet and may be nearer."""
        waiting = self._waiting[side]
        if len(waiting) > 1:
            return abs(waiting[1].time_ns - time_ns) < gap_ns
        rate = self._rates[side]
        # For the first frames, the shortest interval is the cautious estimate; waiting for more would delay each of them.
        period_ns = rate.period_ns if rate.trusted else rate.shortest_ns
        expected_ns = time_ns if period_ns is None else waiting[0].time_ns + period_ns
        return None if abs(expected_ns - time_ns) < gap_ns else False

    def _match_leader(self, pairs: list[Pair], dropped: list[tuple[Frame, str]], *, final: bool) -> bool:
        """Decide on the earliest frame of the faster camera; False if the decision has to wait."""
        assert self._leader is not None
        slower = other(self._leader)
        if not self._waiting[self._leader]:
            return self._drop_overflow(dropped)
        frame = self._waiting[self._leader][0]
        time_ns = frame.time_ns
        # All frames of the slower camera up to this time, and the first one after it if it is nearer.
        while self._waiting[slower] and (
            self._waiting[slower][0].time_ns <= time_ns or self._nearer(self._waiting[slower][0], time_ns)
        ):
            self._keep(self._waiting[slower].popleft(), dropped)
        if self.policy == "nearest" and not final and not self._waiting[slower] and self._next_may_be_nearer(slower, time_ns):
            return self._drop_overflow(dropped)
        self._waiting[self._leader].popleft()
        gap_ns = None if self._kept is None else abs(self._kept.time_ns - time_ns)
        limit_ns = max(self.max_age_ns, self.max_skew_ns) if self.policy == "hold" else self.max_skew_ns
        if self._kept is None or gap_ns is None or gap_ns > limit_ns:
            dropped.append((frame, NO_COUNTERPART))
            return True
        pairs.append(self._pair(frame, self._kept, held=gap_ns > self.max_skew_ns))
        self._kept_used, self._last_led = True, frame
        return True

    def _nearer(self, candidate: Frame, time_ns: int) -> bool:
        """Whether a frame after ``time_ns`` is nearer to it than the kept frame."""
        if self._kept is None:
            return True
        return abs(candidate.time_ns - time_ns) < abs(self._kept.time_ns - time_ns)

    def _next_may_be_nearer(self, slower: Side, time_ns: int) -> bool:
        if self._kept is None:
            return (self._latest_ns[slower] or 0) < time_ns
        kept_ns = self._kept.time_ns
        if kept_ns >= time_ns:
            return False
        period_ns = self._rates[slower].period_ns or 0
        next_ns = kept_ns + period_ns
        return next_ns - time_ns < time_ns - kept_ns and next_ns - time_ns <= self.max_skew_ns

    def _keep(self, frame: Frame, dropped: list[tuple[Frame, str]]) -> None:
        if self._kept is not None and not self._kept_used:
            dropped.append((self._kept, NO_COUNTERPART))
        self._kept, self._kept_used = frame, False

    def _drop_overflow(self, dropped: list[tuple[Frame, str]]) -> bool:
        """Limit the number of frames that wait for a silent camera."""
        for waiting in self._waiting.values():
            while len(waiting) > _MIN_WAITING and (
                waiting[-1].time_ns - waiting[0].time_ns > self._max_wait_ns
                or len(waiting) * waiting[0].image.nbytes > _MAX_WAITING_BYTES
            ):
                dropped.append((waiting.popleft(), NO_COUNTERPART))
        return False

    def _pair(self, one: Frame, two: Frame, *, held: bool = False) -> Pair:
        ir, vis = (one, two) if one.side == "ir" else (two, one)
        self._number += 1
        return Pair(self._number - 1, ir, vis, held)
