"""Frozen frames, and the repetitions of a sensor that is slower than its interface."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.pairing.freeze import FreezeWatch


def contents(numbers: list[int], rate_hz: float = 30.0) -> tuple[FreezeWatch, list[str]]:
    watch = FreezeWatch()
    images = {number: np.full((2, 2), number, np.uint16) for number in set(numbers)}
    return watch, [watch.add(images[number], round(at * SECOND / rate_hz)).content for at, number in enumerate(numbers)]


def test_nine_hertz_behind_thirty_is_a_rate_and_no_freeze() -> None:
    watch, seen = contents([int(number * 9 / 30) for number in range(300)])
    assert watch.freezes == 0
    assert (seen.count("new"), seen.count("repeated"), seen.count("unchanged")) == (90, 200, 10)
    assert watch.repeats == 3
    assert watch.content_hz == pytest.approx(9, rel=0.05)


def test_a_freeze_of_a_camera_that_repeats_its_frames() -> None:
    watch, seen = contents([*(number // 3 for number in range(90)), *([29] * 30), *(number // 3 for number in range(90, 120))])
    assert watch.freezes == 1
    assert seen.count("frozen") == 30 + 3 - 6  # from the seventh frame with the same content on
    assert watch.add(np.full((2, 2), 99, np.uint16), 9 * SECOND).content == "new"


def test_a_freeze_of_a_camera_that_never_repeats_frames() -> None:
    watch, seen = contents([*range(30), *([29] * 15), *range(30, 60)])
    assert watch.freezes == 1
    assert seen.count("frozen") == 15
    watch, seen = contents([0] * 30)  # from the start on: nothing is known yet
    assert watch.freezes == 1
    assert (seen.count("unchanged"), seen.count("frozen")) == (7, 22)
