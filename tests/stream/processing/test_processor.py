"""Fusion of one pair of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array, Float32Array, State, Uint8Array
from refusion_edge.backends.registry import RunOptions, open_weights
from refusion_edge.errors import InputError
from refusion_edge.fuser import Fuser
from refusion_edge.images.color import OUTPUT_RANGES, merge, to_output_range
from refusion_edge.rig.model import GAIN_METHODS, GainMethod, Matrix, Rig, RigAlignment, RigSource, to_rows
from refusion_edge.rig.warp import make_warp
from refusion_edge.stream.frames import MS, Frame, Pair
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch, VideoRange
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.sources.synthetic import Painter, Scene
from refusion_edge.tasks import find_task
from tests.raising import raises
from tests.stream.conftest import MeanBackend

PERIOD_NS = 40 * MS


# Static and noisy; a hot figure walks in after a second.
SCENE = Scene(width=96, height=72, noise=3, scene="texture", walker=60, seed=3)


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
    assert difference.max() <= 2  # luma is kept in 8 bits: half a level before the network and one after it
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


def one_pair(ir: Array, vis: Array, *, white: float | None = None) -> Pair:
    return Pair(0, Frame("ir", ir, 0, 0, 0, 0), Frame("vis", vis, 0, 0, 0, 0, white=white))


def levels_of(picture: Callable[..., Array], height: int = 48, width: int = 64) -> Array:
    """A smooth thermal scene that fills 0 to 255."""
    smooth = cv2.GaussianBlur(picture(height, width), (0, 0), 2).astype(np.float64)
    return np.rint((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def thermal(levels: Array) -> dict[str, Array]:
    """The same thermal scene as cameras deliver it."""
    kelvin = 285 + levels.astype(np.float64) * 0.05
    return {
        "8 bits": levels,
        "counts": (51_241 + levels.astype(np.uint16) * 4).astype(np.uint16),
        "centikelvin": np.rint(kelvin * 100).astype(np.uint16),
        "kelvin": kelvin.astype(np.float32),
        "celsius in float64": kelvin - 273.15,
        "signed": (levels.astype(np.int16) * 9 - 1000).astype(np.int16),
        "wide": (levels.astype(np.uint32) * 70_000 + 1_000_000).astype(np.uint32),
    }


def visible(shown: Array) -> dict[str, tuple[Array, float | None]]:
    """The same visible image with the full scale that its source states."""
    part = shown.astype(np.float64) / 255
    return {
        "8 bits": (shown, None),
        **{f"{bits} bits": (np.rint(part * (2**bits - 1)).astype(np.uint16), None) for bits in (10, 12, 14, 16)},
        "12 bits, stated": (np.rint(part * 4095).astype(np.uint16), 4095.0),
        "float": (part.astype(np.float32), None),
        "float64": (part, None),
    }


@pytest.mark.parametrize("kind", ["stretch", "fixed", "smooth"])
def test_every_encoding_of_a_pair_is_fused_as_single_images_are(
    kind: VideoRange, picture: Callable[..., Array], random_state: State
) -> None:
    levels, shown = levels_of(picture), picture(48, 64, 3)
    shown[0, 0] = 255
    with open_weights(random_state, options=RunOptions(threads=1)) as backend:
        rgb = np.ascontiguousarray(shown[..., ::-1])
        fuser = Fuser(backend, find_task("ir_vis"), "fixed" if kind == "fixed" else "stretch")
        expected = fuser.fuse(levels, rgb)[..., ::-1].astype(int)
        found = {}
        for name, ir in thermal(levels).items():
            found[name] = Processor(backend, stretch=OutputStretch(kind), marks=False).process(one_pair(ir, shown)).image
            single = fuser.fuse(ir, rgb)[..., ::-1].astype(int)
            assert np.abs(single - expected).max() <= 2, name
        for name, (vis, white) in visible(shown).items():
            processor = Processor(backend, stretch=OutputStretch(kind), marks=False)
            found[name] = processor.process(one_pair(levels, vis, white=white)).image
    for name, image in found.items():
        assert np.abs(image.astype(int) - found["8 bits"]).max() <= 2, name
        if kind != "smooth":  # which leaves out the darkest and brightest 0.1 %, on purpose
            # Chroma is kept in 8 bits, which costs two more levels of blue.
            gray = [cv2.cvtColor(each.astype(np.uint8), cv2.COLOR_BGR2GRAY).astype(int) for each in (image, expected)]
            assert np.abs(gray[0] - gray[1]).max() <= 2, name


def test_twelve_bits_that_are_stated_stay_dark(picture: Callable[..., Array]) -> None:
    levels, dark = levels_of(picture), (picture(48, 64) // 2).astype(np.uint16)
    stretch = OutputStretch("fixed")
    frame = Processor(MeanBackend(), stretch=stretch, marks=False).process(one_pair(levels, dark, white=4095.0))
    assert frame.vis is not None
    assert frame.vis.max() == round(int(dark.max()) * 255 / 4095)


@pytest.mark.parametrize("rigged", [False, True])
@pytest.mark.parametrize("how", ["row", "nan"])
def test_the_fused_frame_shows_visible_where_infrared_has_no_value(
    how: str, rigged: bool, picture: Callable[..., Array]
) -> None:
    levels, vis = levels_of(picture), picture(48, 64, 3)
    counts = thermal(levels)["counts" if how == "row" else "kelvin"]
    dead = np.zeros(levels.shape, np.bool_)
    dead[5] = True
    counts[dead] = 0 if how == "row" else np.nan
    geometry = None
    if rigged:  # moved by half a pixel, so that each dead row spoils two
        half = np.array([[1.0, 0, 0], [0, 1, 0.5], [0, 0, 1]])
        source = RigSource((64, 48))
        geometry = Geometry(make_warp(Rig(source, source, (RigAlignment(None, to_rows(half), None, ""),))))
        dead = np.zeros(levels.shape, np.bool_)
        dead[4:6] = dead[47] = True
    said: list[tuple[str, str]] = []
    processor = Processor(
        MeanBackend(), stretch=OutputStretch("fixed"), geometry=geometry, color=False, marks=False,
        remark=lambda side, text: said.append((side, text)),
    )  # fmt: skip
    for _ in range(2):
        frame = processor.process(one_pair(counts, vis))
    assert frame.no_ir is not None
    assert np.array_equal(frame.no_ir, dead)
    assert frame.no_vis is None
    gray = cv2.cvtColor(vis, cv2.COLOR_BGR2GRAY).astype(int)
    assert np.abs(frame.image.astype(int) - gray)[dead].max() <= 1
    # The network sees no edge there: everywhere else, the mean of both.
    assert frame.ir is not None
    assert (frame.ir[dead] == 0).all()
    mean = (frame.ir * 255 + gray) / 2
    assert np.abs(frame.image - mean)[~dead].max() <= 1
    assert [side for side, _ in said] == ["ir"]


def test_the_fused_frame_shows_infrared_where_visible_has_no_value(picture: Callable[..., Array]) -> None:
    levels, vis = levels_of(picture), (picture(48, 64, 3) / 255).astype(np.float32)
    vis[30:] = np.nan
    frame = Processor(MeanBackend(), stretch=OutputStretch("fixed"), marks=False).process(one_pair(levels, vis))
    assert frame.no_vis is not None
    assert np.flatnonzero(frame.no_vis.all(axis=1)).tolist() == list(range(30, 48))
    assert np.abs(frame.image[30:].astype(int) - levels[30:, :, None]).max() <= 1
    assert np.ptp(frame.image[:30].astype(int), axis=2).max() > 20


def test_a_base_that_shows_more_than_the_visible_camera_shows_infrared_there(picture: Callable[..., Array]) -> None:
    levels, vis = levels_of(picture), picture(48, 64, 3)
    shift = np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]])
    rig = Rig(RigSource((64, 48)), RigSource((64, 48)), (RigAlignment(None, to_rows(shift), None, ""),), base="ir")
    processor = Processor(
        MeanBackend(), stretch=OutputStretch("fixed"), geometry=Geometry(make_warp(rig)), color=False, marks=False
    )
    image = processor.process(one_pair(levels, vis)).image
    assert np.abs(image[:, 54:].astype(int) - levels[:, 54:]).max() <= 1


@pytest.mark.parametrize(("start_px", "shift_px", "mapped"), [(0, 12, 52), (1, 12, 64), (1, 30, 50)])
def test_a_refined_warp_that_reaches_beyond_the_first_shows_visible_there(
    start_px: int, shift_px: int, mapped: int, picture: Callable[..., Array]
) -> None:
    """The first warp is a crop, or looks up its pixels, with a gain for 16 columns beyond them."""

    def shift(px: int) -> Matrix:
        return np.array([[1.0, 0, px], [0, 1, 0], [0, 0, 1]])

    levels, vis = picture(96, 128), picture(48, 64, 3)
    rig = Rig(RigSource((128, 96)), RigSource((64, 48)), (RigAlignment(None, to_rows(shift(start_px)), None, ""),))
    processor = Processor(
        MeanBackend(), stretch=OutputStretch("fixed"), geometry=Geometry(make_warp(rig)), color=False, marks=False
    )
    assert processor.process(one_pair(levels, vis)).no_ir is None
    processor.use_warp(make_warp(rig, correction=shift(shift_px)))
    frame = processor.process(one_pair(levels, vis))
    gray = cv2.cvtColor(vis, cv2.COLOR_BGR2GRAY).astype(int)
    left = start_px + shift_px
    expected = (levels[:48, left : left + 64].astype(int) + gray) / 2
    assert np.abs(frame.image[:, :mapped] - expected[:, :mapped]).max() <= 1
    assert np.abs(frame.image[:, mapped:].astype(int) - gray[:, mapped:]).max(initial=0) <= 1
    assert (0 if frame.no_ir is None else np.count_nonzero(frame.no_ir.any(axis=0))) == 64 - mapped


def test_colored_infrared_and_swapped_cameras_are_said(picture: Callable[..., Array]) -> None:
    levels = levels_of(picture)
    cases = {
        "gray": (levels, picture(48, 64, 3), 0),
        "three equal channels": (cv2.cvtColor(levels, cv2.COLOR_GRAY2BGR), picture(48, 64, 3), 0),
        "jet": (cv2.applyColorMap(levels, cv2.COLORMAP_JET), picture(48, 64, 3), 1),
        "16-bit jet": (cv2.applyColorMap(levels, cv2.COLORMAP_JET).astype(np.uint16) * 257, picture(48, 64, 3), 1),
        "swapped": (picture(48, 64, 3), levels, 2),
        "swapped, three channels": (picture(48, 64, 3), cv2.cvtColor(levels, cv2.COLOR_GRAY2BGR), 2),
    }
    for name, (ir, vis, count) in cases.items():
        said: list[str] = []
        processor = Processor(MeanBackend(), remark=lambda _side, text, said=said: said.append(text))
        for _ in range(3):
            processor.process(one_pair(ir, vis))
        assert len(said) == count, name


@pytest.mark.parametrize("bad", ["all NaN", "negative", "float of 0 to 255"])
def test_frames_that_mean_nothing_are_refused(bad: str, picture: Callable[..., Array]) -> None:
    levels, vis = levels_of(picture), picture(48, 64)
    pairs = {
        "all NaN": one_pair(np.full((48, 64), np.nan, np.float32), vis),
        "negative": one_pair(levels, vis.astype(np.int16) - 100),
        "float of 0 to 255": one_pair(levels, vis.astype(np.float32)),
    }
    with raises(InputError):
        Processor(MeanBackend()).process(pairs[bad])


def telemetry(ir: Array, number: int) -> Array:
    """A 16-bit thermal frame with two rows of telemetry below, which count."""
    below = np.zeros((2, ir.shape[1]), ir.dtype)
    below[:, ::2] = 65535
    below[1, 0] = number
    return np.concatenate((ir, below))


@pytest.mark.parametrize("method", GAIN_METHODS)
def test_gain_is_measured_on_what_a_crop_leaves(method: GainMethod) -> None:
    rng = np.random.default_rng(5)
    ir = (20000 + 600 * cv2.GaussianBlur(rng.standard_normal((72, 96)), (0, 0), 3)).astype(np.uint16)
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
