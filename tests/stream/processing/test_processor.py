"""Fusion of one pair of frames."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from refusion_edge.arrays import Array, Float32Array, State, Uint8Array
from refusion_edge.backends.registry import RunOptions, open_weights
from refusion_edge.fuser import Fuser
from refusion_edge.images.color import OUTPUT_RANGES, merge, to_output_range
from refusion_edge.rig.model import GAIN_METHODS, GainMethod, Rig, RigAlignment, RigSource, to_rows
from refusion_edge.rig.warp import make_warp
from refusion_edge.stream.frames import MS, Frame, Pair
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch, VideoRange
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.sources.synthetic import Painter, Scene
from refusion_edge.tasks import find_task
from tests.stream.conftest import MeanBackend

PERIOD_NS = 40 * MS


# Static and noisy; a hot figure walks in after a second.
SCENE = Scene(width=96, height=72, noise=3, walker=60, seed=3)


def walk(frames: int = 80) -> Iterator[tuple[Array, Array, int]]:
    ir, vis = Painter(SCENE, "ir"), Painter(SCENE, "vis")
    for number in range(frames):
        time_ns = number * PERIOD_NS
        yield ir.paint(time_ns), vis.paint(time_ns), time_ns


def test_color_bypasses_the_network_within_two_levels_of_single_images(random_state: State) -> None:
    _, vis, time_ns = list(walk(30))[-1]
    ir = (np.random.default_rng(0).random(vis.shape[:2]) * 255).astype(np.uint8)
    with open_weights(random_state, options=RunOptions(threads=1)) as backend:
        expected = Fuser(backend, find_task("ir_vis")).fuse(ir, np.ascontiguousarray(vis[..., ::-1]))
        pair = Pair(0, Frame("ir", ir, 0, time_ns, 0, time_ns), Frame("vis", vis, 0, time_ns, 0, time_ns))
        got = Processor(backend, stretch=OutputStretch("stretch"), marks=False).process(pair).image
    difference = np.abs(got[..., ::-1].astype(int) - expected)
    assert difference.max() <= 4  # luma and chroma are kept in 8 bits: half a level each, times 1.8 for blue
    assert difference.mean() < 1.0


class DeviceLike(MeanBackend):
    """Has uint8 input and uint8 output, as an engine that was built with them."""

    takes_uint8 = True

    def __init__(self, uint8_range: str | None) -> None:
        super().__init__()
        self.uint8_range = uint8_range
        self.asked: list[tuple[str, str]] = []

    def fuse(self, a: Array, b: Array) -> Float32Array:
        self.asked.append(("plane", str(b.dtype)))
        return super().fuse(a, b / np.float32(255))

    def fuse_uint8(self, a: Array, b: Array) -> Uint8Array:
        self.asked.append(("levels", str(b.dtype)))
        assert self.uint8_range in OUTPUT_RANGES
        return merge(to_output_range(super().fuse(a, b / np.float32(255))[0, 0], self.uint8_range), None)


@pytest.mark.parametrize(
    ("kind", "built", "asked"),
    [("stretch", "stretch", "levels"), ("fixed", "fixed", "levels"), ("fixed", "stretch", "plane"),
     ("smooth", "fixed", "plane"), ("stretch", None, "plane")],
)  # fmt: skip
def test_the_device_finishes_the_image_where_it_can(kind: VideoRange, built: str | None, asked: str) -> None:
    ir, vis, time_ns = list(walk(30))[-1]
    pair = Pair(0, Frame("ir", ir, 0, time_ns, 0, time_ns), Frame("vis", vis, 0, time_ns, 0, time_ns))
    backend = DeviceLike(built)
    got, expected = (
        Processor(one, stretch=OutputStretch(kind), marks=False).process(pair).image for one in (backend, MeanBackend())
    )
    assert backend.asked == [(asked, "uint8")]
    # The two paths round halves differently, and chroma is merged in 8 bits.
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 2


def test_marks_are_written_into_a_copy_only() -> None:
    _, vis, time_ns = next(iter(walk(1)))
    alone = Pair(0, None, Frame("vis", vis, 0, time_ns, 0, time_ns))
    before = vis.copy()
    marked = Processor(MeanBackend()).process(alone)
    assert marked.mode == "visible only"
    assert marked.marks == ("infrared lost",)
    assert np.array_equal(vis, before)
    assert not np.array_equal(marked.image, vis)
    assert np.array_equal(Processor(MeanBackend(), marks=False).process(alone).image, vis)


def telemetry(ir: Array, number: int) -> Array:
    """A 16-bit thermal frame with two rows of telemetry below, which count."""
    below = np.zeros((2, ir.shape[1]), ir.dtype)
    below[:, ::2] = 65535
    below[1, 0] = number
    return np.concatenate((ir, below))


@pytest.mark.parametrize("method", GAIN_METHODS)
def test_gain_is_measured_on_what_a_crop_leaves(method: GainMethod) -> None:
    rng = np.random.default_rng(5)
    ir = (20000 + 60 * rng.standard_normal((72, 96))).astype(np.uint16)
    vis = np.full((72, 96, 3), 128, np.uint8)
    rig = Rig(
        RigSource((96, 74), crop_xywh=(0, 0, 96, 72)), RigSource((96, 72)), (RigAlignment(None, to_rows(np.eye(3)), None, ""),)
    )

    def luma(frame: Array, geometry: Geometry | None) -> Array:
        pair = Pair(0, Frame("ir", frame, 0, 0, 0, 0), Frame("vis", vis, 0, 0, 0, 0))
        found = Processor(MeanBackend(), gain=ThermalGain(method), geometry=geometry).process(pair).ir
        assert found is not None
        return found

    got = luma(telemetry(ir, 7), Geometry(make_warp(rig)))
    np.testing.assert_allclose(got, luma(ir, None), atol=1e-5)
    assert got.std() > 0.1
