"""Motion of the scene."""

from __future__ import annotations

import pytest

from refusion_edge.stream.frames import MS
from refusion_edge.stream.run.pairing import MotionMeter
from refusion_edge.stream.sources.synthetic import Painter, Scene


def test_motion_is_measured_in_pixels_per_second() -> None:
    painter = Painter(Scene(width=320, height=240, noise=1, scene="texture", pan=90, walker=0), "vis")
    meter = MotionMeter()
    assert meter.add(painter.paint(0), 0) is None
    assert meter.add(painter.paint(40 * MS), 40 * MS) == pytest.approx(90, abs=15)
