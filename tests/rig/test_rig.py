"""The rig and its file: exact round trips, and every flaw named with its place."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusion_edge.errors import OutputError, RigError
from refusion_edge.rig.file import format_rig, parse_rig, read_rig, write_rig
from refusion_edge.rig.model import (
    GAIN_METHODS,
    LENS_MODELS,
    POLARITIES,
    SOURCE_NAMES,
    Lens,
    ParallaxModel,
    Rig,
    RigAlignment,
    RigSource,
    to_rows,
)
from tests.conftest import files_below, one_sentence
from tests.raising import raises

IDENTITY = to_rows(np.eye(3))


RIG = Rig(
    ir=RigSource((640, 512), "v4l2:///dev/video1", (0, 16, 640, 480)),
    vis=RigSource((1920, 1080), "csi://0", None, Lens("pinhole", (1400.5, 1401.25), (959.5, 539.5), (-0.1, 0.01, 0.0, 0.0))),
    alignments=(
        RigAlignment(2.0, to_rows(np.array([[0.5, 0.01, 9.0], [0, 0.5, 1], [1e-5, 0, 1]])), 0.4, "checkerboard"),
        RigAlignment(math.inf, to_rows(np.array([[0.5, 0.01, 1.0], [0, 0.5, 1], [1e-5, 0, 1]])), 0.5, "scene"),
    ),
    base="ir",
    time_offset_ms=-12.75,
    time_error_ms=1.5,
    parallax=ParallaxModel(700.0, 0.03),
)


def test_a_rig_comes_back_to_the_last_digit() -> None:
    rig = RIG
    write_rig("rig.yaml", rig)
    assert read_rig("rig.yaml") == rig
    assert parse_rig(format_rig(rig)) == rig


numbers = st.floats(-1e9, 1e9)
sizes = st.tuples(st.integers(8, 16384), st.integers(8, 16384))
positive = st.floats(1e-6, 1e6)
lenses = st.builds(
    Lens,
    st.sampled_from(LENS_MODELS),
    st.tuples(positive, positive),
    st.tuples(numbers, numbers),
    st.just(()) | st.tuples(*[numbers] * 4),
)
sources = st.builds(RigSource, sizes, st.none() | st.text(), st.none(), st.none() | lenses)


@st.composite
def alignments(draw: st.DrawFn) -> tuple[RigAlignment, ...]:
    distances = sorted(draw(st.sets(positive | st.just(math.inf), min_size=1, max_size=4)))
    small = st.floats(-0.2, 0.2)
    return tuple(
        RigAlignment(
            distance,
            to_rows(np.eye(3) + np.array(draw(st.lists(small, min_size=9, max_size=9))).reshape(3, 3)),
            draw(st.none() | st.floats(0, 1e6)),
            draw(st.text()),
        )
        for distance in distances
    )


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Rig, sources, sources, alignments(), st.sampled_from(SOURCE_NAMES), st.sampled_from(POLARITIES),
        st.sampled_from(GAIN_METHODS), st.none() | numbers, st.none() | st.floats(0, 1e6),
        st.none() | st.builds(ParallaxModel, positive, st.floats(0, 1e3)),
    )
)  # fmt: skip
def test_every_rig_comes_back_to_the_last_digit(rig: Rig) -> None:
    assert parse_rig(format_rig(rig)) == rig


def test_a_hand_written_file_needs_only_sizes_and_a_homography() -> None:
    rig = parse_rig(
        "schema: refusion-edge/rig/1\nir: {size_wh: [64, 48]}\nvis: {size_wh: [64, 48]}\n"
        "alignments:\n- homography: [[1, 0, 3], [0, 1, 0], [0, 0, 1]]\n"
    )
    assert rig == Rig(
        RigSource((64, 48)), RigSource((64, 48)), (RigAlignment(None, to_rows(np.array([[1, 0, 3.0], [0, 1, 0], [0, 0, 1]]))),)
    )
    assert (rig.base, rig.moving, rig.view_size_wh) == ("vis", "ir", (64, 48))


@pytest.mark.parametrize(
    ("old", "new", "named", "remedy"),
    [
        ("schema: refusion-edge/rig/1", "schema: refusion-edge/rig/9", ("'refusion-edge/rig/9'", "refusion-edge/rig/1"), ""),
        ("polarity: white", "polarty: white", ("'polarty'",), "'polarity'"),
        ("size_wh: [640, 512]", "size_hw: [640, 512]", ("'size_wh'", " ir"), "'size_hw'"),
        ("time_offset_ms: -12.75", "time_offset_ms: soon", ("time_offset_ms", "'soon'"), ""),
        ("time_offset_ms: -12.75", "time_offset_ms: .nan", ("time_offset_ms", "nan"), ""),
        ("time_error_ms: 1.5", "time_error_ms: -1", ("time_error_ms", "-1"), ""),
        ("time_offset_ms: -12.75", "time_offset_ms: true", ("time_offset_ms", "True"), ""),
        ("gain: percentile", "gain: auto", ("gain", "'auto'"), "linear"),
        ("base: ir", "base: ir\nbase: vis", ("line 36",), ""),
        ("size_wh: [640, 512]", "size_wh: [640.5, 512]", ("ir.size_wh", "640.5"), ""),
        ("size_wh: [640, 512]", "size_wh: [640]", ("ir.size_wh", "list of 2"), ""),
        ("size_wh: [640, 512]", "size_wh: [640, 5]", ("ir.size_wh", "[640, 5]"), "8"),
        ("crop_xywh: [0, 16, 640, 480]", "crop_xywh: [0, 40, 640, 480]", ("ir.crop_xywh", "[0, 40, 640, 480]"), "512x640"),
        ("model: pinhole", "model: pinwheel", ("vis.lens.model", "'pinwheel'"), "pinhole, fisheye"),
        ("distortion: [-0.1, 0.01, 0.0, 0.0]", "distortion: [-0.1, 0.01, 0.0]", ("vis.lens.distortion", "3 coefficients"), ""),
        ("focal_px: [1400.5, 1401.25]", "focal_px: [0, 1401.25]", ("vis.lens", "(0.0, 1401.25"), "focal lengths"),
        ("distance_m: 2.0", "distance_m: -2.0", ("alignments[0].distance_m", "-2.0"), ""),
        ("distance_m: 2.0", "distance_m: .inf", ("(far away, far away)",), ""),
        ("distance_m: 2.0", "distance_m: null", ("(distance not stated, far away)",), ""),
        ("error_px: 0.4", "error_px: .inf", ("alignments[0].error_px", "inf"), ""),
        ("error_method: scene", "error_method: 3", ("error_method", "3"), "quotes"),
        ("  - [0.0, 0.5, 1.0]\n", "  - [0.0, 0.5]\n", ("homography[1]", "list of 3"), ""),
        ("  - [0.5, 0.01, 9.0]", "  - [0.0, 0.0, 0.0]", ("alignments[0].homography",), ""),
        ("  - [0.5, 0.01, 9.0]", "  - [.nan, 0.0, 0.0]", ("alignments[0].homography",), ""),
        ("  - [0.5, 0.01, 9.0]", f"  - [1{'0' * 400}, 0.0, 0.0]", ("number",), ""),
        ("baseline_m: 0.03", "baseline_m: -1", ("baseline_m of -1",), ""),
        ("ir:", "ir: [", ("YAML",), ""),
        ("ir:", "ir: {size_wh: [9, 9]}\nir2:", ("'ir2'",), ""),
    ],
)  # fmt: skip
def test_a_flaw_is_named_in_one_sentence(old: str, new: str, named: tuple[str, ...], remedy: str) -> None:
    text = format_rig(RIG)
    assert old in text
    Path("rig.yaml").write_text(text.replace(old, new, 1))
    with raises(RigError, "rig.yaml: ", *named, remedy=remedy) as caught:
        read_rig("rig.yaml")
    assert caught.value.problem.startswith("rig.yaml: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"- 1\n",
        b"\xff\xfe\x00",
        b"!!python/object/apply:os.system ['true']",
        b"{" * 5000,
        b"? [1]\n: 2\n",
        b"7: 8\n",
        b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        b"ir: 1:" + b"0:" * 5000 + b"1",
        b"ir: " + b"1" * 5000,
        b"ir: !!int ''",
        b"ir: !!timestamp abc",
        b"!!map [1, 2]",
    ],
)
def test_what_is_no_rig_is_refused(text: bytes) -> None:
    Path("rig.yaml").write_bytes(text)
    with pytest.raises(RigError) as caught:
        read_rig("rig.yaml")
    assert one_sentence(str(caught.value))


def test_a_missing_a_huge_and_an_unwritable_file_are_refused() -> None:
    with raises(RigError, "none.yaml"):
        read_rig("none.yaml")
    with raises(RigError, "folder"):
        read_rig(".")
    Path("big.yaml").write_bytes(b"#" * (1 << 21))
    with raises(RigError, "big.yaml", expected=1 << 18, got=1 << 21):
        read_rig("big.yaml")
    with raises(OutputError, "big.yaml/rig.yaml"):
        write_rig("big.yaml/rig.yaml", RIG)
    assert files_below(Path()) == ["big.yaml"]


def test_the_homography_between_two_distances_is_that_of_the_plane() -> None:
    camera = np.array([[700.0, 0, 319.5], [0, 700, 239.5], [0, 0, 1]])
    moving_camera = np.array([[500.0, 0, 150], [0, 510, 120], [0, 0, 1]])
    angle = 0.02
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])

    def plane(distance_m: float) -> np.ndarray:
        shift = np.outer([0.05, -0.01, 0], [0, 0, 1]) / distance_m
        return moving_camera @ (turn + shift) @ np.linalg.inv(camera)

    rig = replace(RIG, alignments=tuple(RigAlignment(z, to_rows(plane(z))) for z in (1.0, math.inf)))
    for distance_m in (1.0, 1.5, 4.0, 1e5, math.inf):
        expected = plane(distance_m)
        np.testing.assert_allclose(rig.homography(distance_m), expected / expected[2, 2], rtol=0, atol=1e-12 * 700)
    np.testing.assert_array_equal(rig.homography(), rig.homography(math.inf))


@pytest.mark.parametrize("distance_m", [1.9, 0.0, -1.0, math.nan])
def test_a_distance_that_the_rig_does_not_hold_for_is_refused(distance_m: float) -> None:
    with raises(RigError, f"{distance_m:g} m"):
        RIG.homography(distance_m)
    with raises(RigError, "distance not stated", remedy="--distance 5m", got=5.0):
        replace(RIG, alignments=(RigAlignment(None, IDENTITY),)).homography(5.0)


def test_alignments_are_added_in_order_and_replaced() -> None:
    rig = RIG.with_alignment(RigAlignment(5.0, IDENTITY)).with_alignment(RigAlignment(2.0, IDENTITY, 0.1, "again"))
    assert [alignment.distance_m for alignment in rig.alignments] == [2.0, 5.0, math.inf]
    assert rig.alignments[0].error_method == "again"
    assert rig.with_alignment(RigAlignment(None, IDENTITY)).alignments == (RigAlignment(None, IDENTITY),)


def test_parallax_is_that_of_the_table() -> None:
    # 640 px over 50 degrees, 30 mm between the cameras, aligned at 10 m.
    model = ParallaxModel(320 / math.tan(math.radians(25)), 0.03)
    assert [round(model.error_px(z, 10.0), 1) for z in (1.0, 2.0, 5.0, math.inf)] == [18.5, 8.2, 2.1, 2.1]
