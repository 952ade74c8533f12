"""Cameras of Video4Linux: modes, what is granted, pixel formats, and the kernel's times."""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, SourceLostError, UsageError
from refusion_edge.stream.frames import MS, SECOND
from refusion_edge.stream.sources import v4l2_device
from refusion_edge.stream.sources.clock import CLOCK_KERNEL, CLOCK_STREAM
from refusion_edge.stream.sources.source import CorruptFrameError
from refusion_edge.stream.sources.v4l2 import FORMATS, V4l2Source, choose_mode
from refusion_edge.stream.sources.v4l2_device import Device, Mode, find_cameras
from refusion_edge.stream.uri import parse_source
from tests.fakes.v4l2 import DAMAGED, MONOTONIC, FakeCamera

WEBCAM = (
    Mode("YUYV", 640, 480, 30.0), Mode("YUYV", 640, 480, 15.0), Mode("YUYV", 1280, 720, 10.0), Mode("MJPG", 640, 480, 30.0),
    Mode("MJPG", 1280, 720, 30.0), Mode("MJPG", 1920, 1080, 30.0),
)  # fmt: skip
ALL = tuple(fourcc for names in FORMATS.values() for fourcc in names)


def source(camera: FakeCamera, options: str = "", side: str = "vis") -> V4l2Source:
    return V4l2Source(parse_source(f"v4l2:///dev/video9{options}"), "ir" if side == "ir" else "vis", camera)


def jpeg(image: Array) -> bytes:
    encoded, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 95))
    assert encoded
    return data.tobytes()


def without_tables(data: bytes) -> bytes:
    """A JPEG without its Huffman tables, as many cameras send it."""
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == 0xC4 else data[at : at + length]
        at += length
    return kept + data[at:]


@pytest.mark.parametrize(
    ("size_wh", "rate_hz", "expected"),
    [
        ((1280, 720), 30, "MJPG 720x1280@30"),  # B25: the raw format does only 10
        ((1280, 720), 0, "MJPG 720x1280@30"),
        ((0, 0), 0, "MJPG 720x1280@30"),
        ((640, 480), 0, "YUYV 480x640@30"),  # raw, as it is as fast
        ((640, 480), 15, "YUYV 480x640@15"),
        ((0, 720), 10, "YUYV 720x1280@10"),
        ((1280, 720), 60, None),
        ((800, 600), 0, None),
    ],
)
def test_the_fastest_mode_that_satisfies_the_request(size_wh: tuple[int, int], rate_hz: float, expected: str | None) -> None:
    chosen = choose_mode(WEBCAM, ("YUYV", "MJPG"), size_wh, rate_hz)
    assert (None if chosen is None else str(chosen)) == expected


def test_best_effort_takes_the_nearest_mode() -> None:
    fast = choose_mode(WEBCAM, ("YUYV", "MJPG"), (1280, 720), 60, best_effort=True)
    assert str(fast) == "MJPG 720x1280@30"
    small = choose_mode(WEBCAM, ("YUYV", "MJPG"), (800, 600), 0, best_effort=True)
    assert (small.width, small.height) == (640, 480) if small else False
    assert choose_mode(WEBCAM, ("Y16 ",), (0, 0), 0, best_effort=True) is None


def test_what_the_camera_does_not_offer_is_an_error() -> None:
    camera = FakeCamera(WEBCAM)
    with pytest.raises(InputError) as caught, source(camera, "?width=1280&height=720&rate=60"):
        pass
    assert caught.value.exit_code == 4
    assert "720x1280" in str(caught.value.expected)
    assert "MJPG 720x1280@30" in str(caught.value.got)
    assert camera.opened == 0


def test_what_the_driver_does_not_grant_is_an_error_or_said() -> None:
    camera = FakeCamera(WEBCAM, grants=lambda _wish: Mode("YUYV", 640, 480, 10.0))
    with pytest.raises(InputError) as caught, source(camera, "?width=1280&height=720&rate=30"):
        pass
    assert (caught.value.expected, caught.value.got) == ("MJPG 720x1280@30", "YUYV 480x640@10")
    assert camera.opened == 0
    with source(camera, "?width=1280&height=720&rate=30&best-effort=1") as opened:
        assert opened.mode == Mode("YUYV", 640, 480, 10.0)
        assert opened.rate_hz == 10.0
        (remark,) = opened.remarks
        assert "YUYV 480x640@10" in remark
        assert "720x1280" in remark
    with source(FakeCamera(WEBCAM), "?width=640&height=480&best-effort=1") as opened:
        assert opened.remarks == []


def test_a_rate_that_is_not_granted_is_an_error_too() -> None:
    camera = FakeCamera(WEBCAM, grants=lambda wish: Mode(wish.fourcc, wish.width, wish.height, 7.5))
    with pytest.raises(InputError), source(camera, "?width=640&height=480"):
        pass


def test_pixel_formats(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 65536, (48, 64)).astype("<u2")
    gray = rng.integers(0, 256, (48, 64)).astype(np.uint8)
    for fourcc, options, image, padding in (
        ("Y16 ", "", counts, 0), ("Y16 ", "?format=y16", counts, 32), ("GREY", "", gray, 0), ("GREY", "", gray, 16),
    ):  # fmt: skip
        rows = image.view(np.uint8).reshape(48, -1)
        data = np.pad(rows, ((0, 0), (0, padding))).tobytes()
        camera = FakeCamera((Mode(fourcc, 64, 48, 30.0),), lambda _number, _mode, data=data: data, padding=padding)
        with source(camera, options, "ir") as opened:
            grab = opened.read()
            assert grab is not None
            assert np.array_equal(grab.image, image)
            assert grab.image.dtype == (np.uint16 if fourcc == "Y16 " else np.uint8)


@pytest.mark.parametrize(("fourcc", "white"), [("Y10 ", 1023), ("Y12 ", 4095), ("Y14 ", 16383), ("Y16 ", None), ("GREY", None)])
def test_formats_of_fewer_bits_state_their_full_scale(fourcc: str, white: float | None) -> None:
    data = bytes(64 * 48 * (1 if fourcc == "GREY" else 2))
    with source(FakeCamera((Mode(fourcc, 64, 48, 30.0),), lambda _number, _mode: data), "", "vis") as opened:
        grab = opened.read()
        assert grab is not None
        assert grab.white == white


def test_split_frames_give_their_counts(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 65536, (192, 256)).astype("<u2")
    data = bytes(256 * 192 * 2) + counts.tobytes()
    camera = FakeCamera((Mode("YUYV", 256, 384, 25.0),), lambda _number, _mode: data)
    with source(camera, "?format=split16", "ir") as opened:
        grab = opened.read()
    assert grab is not None
    assert np.array_equal(grab.image, counts)
    odd = FakeCamera((Mode("YUYV", 256, 383, 25.0),))
    with pytest.raises(InputError), source(odd, "?format=split16", "ir"):
        pass


def test_color_formats() -> None:
    color = np.zeros((48, 64, 3), np.uint8)
    color[:, :32], color[:, 32:] = (200, 60, 30), (20, 80, 220)
    yuv = cv2.cvtColor(color, cv2.COLOR_BGR2YUV).astype(float)
    # BT.601, limited range, by the formula.
    b, g, r = (color[..., channel].astype(float) for channel in range(3))
    y = np.rint(16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255).astype(np.uint8)
    u = np.rint(128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255).astype(np.uint8)
    v = np.rint(128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255).astype(np.uint8)
    assert yuv.shape == color.shape
    yuyv = np.stack((y, np.where(np.arange(64) % 2, v, u)), axis=-1).astype(np.uint8)
    nv12 = np.vstack((y, np.stack((u[::2, ::2], v[::2, ::2]), axis=-1).reshape(24, 64)))
    whole = jpeg(color)
    for fourcc, data in (("YUYV", yuyv.tobytes()), ("NV12", nv12.tobytes()), ("MJPG", whole), ("MJPG", without_tables(whole))):
        camera = FakeCamera((Mode(fourcc, 64, 48, 30.0),), lambda _number, _mode, data=data: data)
        with source(camera) as opened:
            grab = opened.read()
        assert grab is not None
        # Away from the edge between the colors, which subsampled chroma blurs.
        inside = np.r_[4:24, 40:60]
        assert np.abs(grab.image[:, inside].astype(int) - color[:, inside]).max() <= 4, fourcc


def test_damaged_frames_do_not_end_the_source() -> None:
    whole = jpeg(np.full((48, 64, 3), 90, np.uint8))
    frames = [whole, whole[: len(whole) // 2], b"", whole]
    camera = FakeCamera((Mode("MJPG", 64, 48, 30.0),), lambda number, _mode: frames[number])
    with source(camera) as opened:
        assert opened.read() is not None
        for _ in range(2):
            with pytest.raises(CorruptFrameError):
                opened.read()
        last = opened.read()
    assert last is not None
    assert last.index == 3
    with source(FakeCamera(WEBCAM, flags=MONOTONIC | DAMAGED)) as opened, pytest.raises(CorruptFrameError):
        opened.read()
    short = FakeCamera((Mode("YUYV", 64, 48, 30.0),), lambda _number, _mode: bytes(100))
    with source(short) as opened, pytest.raises(CorruptFrameError):
        opened.read()


def test_the_kernel_counts_and_stamps_the_frames() -> None:
    start_ns = time.monotonic_ns() - SECOND
    camera = FakeCamera(
        (Mode("GREY", 64, 48, 30.0),), clock_ns=lambda number: start_ns + number * 33 * MS, lost=frozenset({2, 3})
    )
    with source(camera) as opened:
        grabs = [opened.read() for _ in range(4)]
        assert [grab.index for grab in grabs if grab] == [0, 1, 4, 5]
        # The kernel's structure has microseconds.
        assert [abs(grab.time_ns - start_ns - grab.index * 33 * MS) < 1000 for grab in grabs if grab] == [True] * 4
        assert opened.clock == CLOCK_KERNEL
    wall = FakeCamera((Mode("GREY", 64, 48, 30.0),), clock_ns=lambda number: 1_700_000_000 * SECOND + number * 33 * MS, flags=0)
    with source(wall) as opened:
        grab = opened.read()
        assert opened.clock == CLOCK_STREAM
    assert grab is not None
    assert abs(grab.time_ns - time.monotonic_ns()) < 5 * SECOND


def test_cameras_that_go_or_cannot_be_opened() -> None:
    camera = FakeCamera((Mode("GREY", 64, 48, 30.0),))
    with source(camera) as opened:
        assert opened.read() is not None
        camera.unplugged = True
        with pytest.raises(SourceLostError):
            opened.read()
    assert camera.opened == 0
    assert all(memory.closed for memory in camera.memory)
    for number in (errno.EBUSY, errno.EACCES, errno.ENOENT):
        with pytest.raises(SourceLostError), source(FakeCamera(WEBCAM, opening=number)):
            pass
    with pytest.raises(InputError), source(FakeCamera(WEBCAM, captures=False)):
        pass
    with pytest.raises(UsageError):
        source(FakeCamera(WEBCAM), "?format=h265")


def test_cameras_are_listed_with_their_modes_and_stable_paths(tmp_path: Path) -> None:
    for name in ("video0", "video2", "video10"):
        (tmp_path / name).touch()
    (tmp_path / "v4l" / "by-id").mkdir(parents=True)
    (tmp_path / "v4l" / "by-id" / "usb-Maker_Camera-video-index0").symlink_to("../../video2")
    found = find_cameras(FakeCamera(WEBCAM), tmp_path)
    assert [Path(camera.path).name for camera in found] == ["video0", "video2", "video10"]
    assert [camera.stable_path is not None for camera in found] == [False, True, False]
    assert str(found[1].stable_path).endswith("usb-Maker_Camera-video-index0")
    assert found[0].card == "Fake USB camera"
    assert found[0].modes == WEBCAM
    assert find_cameras(FakeCamera(WEBCAM, captures=False), tmp_path) == ()
    (busy, *_) = find_cameras(FakeCamera(WEBCAM, opening=errno.EBUSY), tmp_path)
    assert busy.problem
    assert find_cameras(FakeCamera(WEBCAM), tmp_path / "absent") == ()


def test_ranges_of_sizes_give_the_usual_ones() -> None:
    class Continuous(FakeCamera):
        def _size(self, entry: Any) -> None:
            if entry.index:
                raise OSError(errno.EINVAL, "Invalid argument")
            entry.type, entry.values[0:6] = 3, (32, 1280, 2, 32, 960, 2)

    with Device("/dev/video9", Continuous((Mode("YUYV", 1280, 960, 30.0),))) as device:
        sizes = {(mode.width, mode.height) for mode in device.modes()}
    assert {(640, 480), (1280, 720), (1280, 960)} <= sizes
    assert (1920, 1080) not in sizes


def test_the_structures_are_those_of_the_kernel(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not Path("/usr/include/linux/videodev2.h").exists():
        pytest.skip("needs a C compiler and the headers of the kernel")
    names = {
        "QUERYCAP": "VIDIOC_QUERYCAP", "ENUM_FMT": "VIDIOC_ENUM_FMT", "S_FMT": "VIDIOC_S_FMT", "REQBUFS": "VIDIOC_REQBUFS",
        "QUERYBUF": "VIDIOC_QUERYBUF", "QBUF": "VIDIOC_QBUF", "DQBUF": "VIDIOC_DQBUF", "STREAMON": "VIDIOC_STREAMON",
        "STREAMOFF": "VIDIOC_STREAMOFF", "G_PARM": "VIDIOC_G_PARM", "S_PARM": "VIDIOC_S_PARM",
        "ENUM_FRAMESIZES": "VIDIOC_ENUM_FRAMESIZES", "ENUM_FRAMEINTERVALS": "VIDIOC_ENUM_FRAMEINTERVALS",
    }  # fmt: skip
    offsets = {
        "offsetof(struct v4l2_format, fmt.pix.bytesperline)": v4l2_device.Format.bytesperline.offset,
        "offsetof(struct v4l2_streamparm, parm.capture.timeperframe)": v4l2_device.StreamParameters.numerator.offset,
        "offsetof(struct v4l2_buffer, timestamp)": v4l2_device.Buffer.seconds.offset,
        "offsetof(struct v4l2_buffer, sequence)": v4l2_device.Buffer.sequence.offset,
        "offsetof(struct v4l2_buffer, m.offset)": v4l2_device.Buffer.offset.offset,
        "offsetof(struct v4l2_frmivalenum, discrete)": v4l2_device.FrameInterval.values.offset,
        "offsetof(struct v4l2_capability, device_caps)": v4l2_device.Capability.device_caps.offset,
    }
    expressions = [*names.values(), *offsets]
    prints = "".join(f'printf("%lu\\n", (unsigned long)({text}));' for text in expressions)
    code = tmp_path / "codes.c"
    code.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n#include <linux/videodev2.h>\nint main(void) {{ {prints} return 0; }}\n"
    )
    subprocess.run([compiler, str(code), "-o", str(tmp_path / "codes")], check=True)
    printed = subprocess.run([str(tmp_path / "codes")], check=True, capture_output=True, text=True).stdout
    assert list(map(int, printed.split())) == [*(getattr(v4l2_device, name) for name in names), *offsets.values()]
    assert ctypes.sizeof(v4l2_device.Buffer) == 88
