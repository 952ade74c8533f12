"""Recorded clocks that were set back while they recorded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from refusion_edge.stream.frames import MS, SIDES, Frame, Side
from refusion_edge.stream.pairing.epochs import Epochs

MakeFrame = Callable[..., Frame]


def recorded(make_frame: MakeFrame, side: Side, period_ms: float, step_ms: float) -> list[Frame]:
    """Twenty seconds of a clock that steps by ``step_ms`` at half time."""
    times_ms = np.arange(0, 20_000, period_ms)
    return [make_frame(side, time_ms + (step_ms if time_ms >= 10_000 else 0.0)) for time_ms in times_ms]


def test_time_goes_on_where_both_clocks_step_back(make_frame: MakeFrame) -> None:
    periods_ms: dict[Side, float] = {"ir": 110, "vis": 33}
    frames = {side: recorded(make_frame, side, period_ms, -5000) for side, period_ms in periods_ms.items()}
    epochs = Epochs()
    order = [(periods_ms[side] * number, side, number) for side in SIDES for number in range(len(frames[side]))]
    placed: dict[Side, list[float]] = {"ir": [], "vis": []}
    for _, side, number in sorted(order):
        placed[side].append(epochs.place(frames[side][number]).time_ns / MS)
    for side in SIDES:
        assert min(np.diff(placed[side])) > 0
        assert max(np.diff(placed[side])) < 250
    # After the step, the two sources are as far apart as they were.
    moved_ms = {side: placed[side][-1] - frames[side][-1].time_ns / MS for side in SIDES}
    assert moved_ms["ir"] == moved_ms["vis"] == pytest.approx(5000, abs=110)
    assert epochs.count == {"ir": 2, "vis": 2}
    assert {side for side, _ in epochs.take_news()} == {"ir", "vis"}
    assert epochs.take_news() == []


def test_only_one_clock_steps_back(make_frame: MakeFrame) -> None:
    frames, epochs = recorded(make_frame, "ir", 40, -3_600_000), Epochs()
    placed = [epochs.place(frame).time_ns / MS for frame in frames]
    assert np.allclose(placed, np.arange(0, 20_000, 40), atol=1)
    assert epochs.count == {"ir": 2, "vis": 1}


def test_a_single_wrong_stamp_leaves_the_other_frames_where_they_are(make_frame: MakeFrame) -> None:
    times_ms = [40.0 * number for number in range(100)]
    times_ms[50] = 0.0
    epochs = Epochs()
    placed = [epochs.place(make_frame("ir", time_ms)).time_ns / MS for time_ms in times_ms]
    assert np.allclose(placed[:50] + placed[51:], times_ms[:50] + times_ms[51:])
    assert abs(placed[50] - 2000) < 20


def test_a_repeated_stamp_and_a_gap_are_left_as_they_are(make_frame: MakeFrame) -> None:
    epochs = Epochs()
    times_ms = [0, 40, 40, 80, 120, 60_000, 60_040]
    assert [epochs.place(make_frame("vis", time_ms)).time_ns / MS for time_ms in times_ms] == times_ms
    assert epochs.count["vis"] == 1
    ((side, text),) = epochs.take_news()
    assert side == "vis"
    assert "59.9 s" in text
