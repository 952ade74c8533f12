"""Video files: every bit and color, their own times, damage, interlacing, orientation."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, ShapeError, UsageError
from refusion_edge.stream.frames import MS
from refusion_edge.stream.sources.damage import is_cut_off
from refusion_edge.stream.sources.pixels import unpack
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import CLOCK_CONTAINER, CLOCK_COUNT, CorruptFrameError, Grab, Source
from refusion_edge.stream.uri import parse_source
from tests.conftest import one_sentence
from tests.stream.conftest import write_video

Picture = Callable[..., Array]


def opened(text: str, side: str = "ir") -> Source:
    return open_source(parse_source(text), "ir" if side == "ir" else "vis")


def read_all(text: str, side: str = "ir") -> list[Grab]:
    with opened(text, side) as source:
        return list(iter(source.read, None))


def read_with_damage(text: str) -> tuple[list[Grab], int, InputError | None]:
    """The good frames, the number of damaged ones, and the error at the end."""
    grabs, damaged = [], 0
    with opened(text) as source:
        while True:
            try:
                grab = source.read()
            except CorruptFrameError:
                damaged += 1
            except InputError as error:
                return grabs, damaged, error
            else:
                if grab is None:
                    return grabs, damaged, None
                grabs.append(grab)


def times_ms(grabs: Sequence[Grab]) -> list[float]:
    return [grab.time_ns / MS for grab in grabs]


def panning(picture: Picture, count: int, height: int = 48, width: int = 64) -> list[Array]:
    """Color frames of a scene that moves by two pixels per frame."""
    scene = picture(height, width + 2 * count, 3)
    return [np.ascontiguousarray(scene[:, 2 * number : 2 * number + width]) for number in range(count)]


# Pixels


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "bits"),
    [
        ("v.mkv", "ffv1", "gray", 8),
        ("v.mkv", "ffv1", "gray10le", 10),
        ("v.mkv", "ffv1", "gray12le", 12),
        ("v.mkv", "ffv1", "gray14le", 14),
        ("v.avi", "ffv1", "gray16le", 16),
        ("v.mov", "png", "gray16be", 16),
        ("v.avi", "png", "gray16be", 16),
        ("v.nut", "rawvideo", "gray16be", 16),
        ("v.mov", "tiff", "gray16le", 16),
    ],
)
def test_infrared_counts_keep_every_bit(name: str, codec: str, pixels: str, bits: int, rng: np.random.Generator) -> None:
    dtype = np.uint8 if bits == 8 else np.uint16
    frames = [rng.integers(0, 1 << bits, (48, 65)).astype(dtype) for _ in range(3)]
    write_video(name, frames, codec=codec, pixels=pixels)
    grabs = read_all(name)
    assert [grab.image.dtype for grab in grabs] == [dtype] * 3
    assert all(np.array_equal(grab.image, frame) for grab, frame in zip(grabs, frames, strict=True))


@pytest.mark.parametrize(
    ("pixels", "white"), [("gray10le", 1023), ("gray12le", 4095), ("gray14le", 16_383), ("gray16le", None)]
)
def test_the_pixel_format_states_the_full_scale(pixels: str, white: float | None, rng: np.random.Generator) -> None:
    frame = rng.integers(0, 800, (48, 64)).astype(np.uint16)
    write_video("v.mkv", [frame], pixels=pixels)
    grab = read_all("v.mkv", "vis")[0]
    assert np.array_equal(grab.image, frame)
    assert grab.white == white


@pytest.mark.parametrize(
    ("pixels", "codec", "bits"), [("yuv420p10le", "ffv1", 10), ("rgb48be", "png", 16), ("gbrp12le", "ffv1", 12)]
)
def test_deep_color_is_not_cut_to_eight_bits(pixels: str, codec: str, bits: int) -> None:
    ramp = np.tile(np.linspace(0, 65535, 1024).astype(np.uint16), (16, 1))
    frame = av.VideoFrame.from_ndarray(np.repeat(ramp[..., None], 3, axis=2), format="bgr48le")
    with av.open("v.avi", "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 1024, 16, pixels
        file.mux(stream.encode(frame.reformat(format=pixels)))
        file.mux(stream.encode())
    levels = 219 * 4 if bits == 10 else 1000
    infrared, visible = read_all("v.avi")[0].image, read_all("v.avi", "vis")[0].image
    assert infrared.ndim == 2
    assert len(np.unique(infrared)) > 0.8 * levels
    assert len(np.unique(visible[..., 1])) > 0.8 * levels
    assert np.abs(visible[8].astype(float) - ramp[8, :, None]).max() < 65535 * 3 / 255


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_jpeg_frames_with_exif_are_turned(orientation: int, quarters: int, picture: Picture) -> None:
    image = cv2.GaussianBlur(picture(48, 64, 3), (0, 0), 4)
    exif = Image.Exif()
    exif[0x112] = orientation
    data = io.BytesIO()
    Image.fromarray(image[..., ::-1]).save(data, "jpeg", quality=98, subsampling=0, exif=exif)
    with av.open("v.avi", "w") as file:
        stream = file.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj444p"
        for number in range(3):
            packet = av.Packet(data.getvalue())
            packet.pts = packet.dts = number
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            file.mux(packet)
    grabs = read_all("v.avi", "vis")
    assert len(grabs) == 3
    assert np.abs(grabs[0].image.astype(int) - np.rot90(image, quarters)).max() < 12


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize(
    ("channels", "bits"),
    [("rgb565", (5, 6, 5)), ("bgr565", (5, 6, 5)), ("rgb555", (5, 5, 5)), ("bgr555", (5, 5, 5)), ("rgb444", (4, 4, 4))],
)
def test_color_in_two_bytes_is_read_in_its_byte_order(
    channels: str, bits: tuple[int, int, int], order: str, rng: np.random.Generator
) -> None:
    image = rng.integers(0, 256, (48, 67, 3)).astype(np.uint8)
    shown = image if channels.startswith("bgr") else image[..., ::-1]
    first, second, third = (shown[..., place].astype(np.uint16) >> (8 - count) for place, count in enumerate(bits))
    packed = (first << (bits[1] + bits[2])) | (second << bits[2]) | third
    frame = av.VideoFrame(67, 48, channels + order)
    rows = np.zeros((48, frame.planes[0].line_size // 2), "<u2" if order == "le" else ">u2")
    rows[:, :67] = packed
    frame.planes[0].update(rows.tobytes())
    with av.open("v.nut", "w") as file:
        stream = file.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 67, 48, channels + order
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    read = read_all("v.nut", "vis")[0].image
    assert np.abs(read.astype(int) - image).max() < 256 >> min(bits)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "number"), [("601", 5), ("709", 1), ("2020", 9), ("601", 2)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv422p", "nv12"])
def test_color_range_and_matrix_are_those_of_the_file(pixels: str, matrix: str, number: int, full: bool) -> None:
    codec = "libx264" if "libx264" in av.codecs_available else "ffv1"
    if codec == "ffv1" and pixels == "nv12":
        pytest.skip("this build of FFmpeg has no H.264 encoder")
    y, u, v = 120, 90, 160
    frame = av.VideoFrame(64, 48, pixels)
    for plane, data in zip(frame.planes, ([y], [u, v] if pixels == "nv12" else [u], [v]), strict=False):
        plane.update(bytes(data) * (plane.buffer_size // len(data)))
    with av.open("v.mkv", "w") as file:
        stream = file.add_stream(codec, rate=25, options={"qp": "0"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = number, 2 if full else 1
        frame.colorspace, frame.color_range = number, 2 if full else 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    # ITU-R BT.601-7, BT.709-6, BT.2020-2.
    red, blue = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}[matrix]
    luma = y / 255 if full else (y - 16) / 219
    cb, cr = ((value - 128) / (255 if full else 224) for value in (u, v))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    shown = read_all("v.mkv", "vis")[0].image[24, 32]
    assert np.abs(shown - 255 * np.array([b, g, r])).max() <= 3


@pytest.mark.parametrize(("width", "height"), [(65, 49), (64, 49), (33, 33)])
def test_odd_sizes(width: int, height: int, picture: Picture) -> None:
    frame = picture(height, width, 3)
    write_video("v.mkv", [frame])
    assert np.array_equal(read_all("v.mkv", "vis")[0].image, frame)


@pytest.mark.parametrize("pixels", ["pal8", "monob", "ya8", "rgba"])
def test_unusual_pixels(pixels: str, picture: Picture) -> None:
    frame = np.where(picture(48, 64) > 127, 255, 0).astype(np.uint8)
    source = av.VideoFrame.from_ndarray(frame, format="gray")
    with av.open("v.avi", "w") as file:
        stream = file.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        if pixels == "pal8":
            source = av.VideoFrame.from_ndarray(
                ((frame // 255).astype(np.uint8), np.array([[0, 0, 0, 0], [255, 255, 255, 255]] + [[0] * 4] * 254, np.uint8)),
                format="pal8",
            )
        file.mux(stream.encode(source.reformat(format=pixels)))
        file.mux(stream.encode())
    image = read_all("v.avi")[0].image
    assert np.array_equal(image if image.ndim == 2 else image[..., 0], frame)


def test_y16_and_split_frames(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 65536, (192, 256)).astype("<u2")
    raw = counts.view(np.uint8).reshape(192, 256, 2)
    assert np.array_equal(unpack(raw, "y16"), counts)
    assert np.array_equal(unpack(counts, "y16"), counts)
    colored = rng.integers(0, 256, (192, 256, 2)).astype(np.uint8)
    assert np.array_equal(unpack(np.concatenate((colored, raw)), "split16"), counts)
    assert unpack(np.zeros((4, 5, 4), np.uint8), "auto").shape == (4, 5, 3)
    for image, pixel_format in (
        (np.zeros((8, 8, 3), np.uint8), "y16"), (np.zeros((7, 8), np.uint16), "split16"), (raw, "auto"),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            unpack(image, pixel_format)


def test_a_recorded_split_frame_gives_its_counts(rng: np.random.Generator) -> None:
    whole = rng.integers(0, 256, (96, 64, 2)).astype(np.uint8)
    with av.open("v.nut", "w") as file:
        stream = file.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuyv422"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="yuyv422")))
    assert np.array_equal(read_all("file://v.nut?format=split16")[0].image, whole[48:].copy().view("<u2")[..., 0])
    write_video("color.mkv", [np.zeros((48, 64, 3), np.uint8)])
    with pytest.raises(InputError):
        read_all("file://color.mkv?format=y16")


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    ],
)
def test_the_display_matrix_turns_the_frames(matrix: tuple[int, ...], turn: Callable[[Array], Array], picture: Picture) -> None:
    frame = picture(48, 64, 3)
    write_video("v.mov", [frame], codec="png", pixels="rgb24")
    data = Path("v.mov").read_bytes()
    # ISO/IEC 14496-12, 8.3.2: the matrix of the track header, nine numbers in 16.16 and 2.30, is 40 bytes behind its version.
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = matrix
    numbers = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    assert len(numbers) == 36
    Path("v.mov").write_bytes(data[:at] + numbers + data[at + 36 :])
    assert np.array_equal(read_all("v.mov", "vis")[0].image, turn(frame))


@pytest.mark.parametrize("first", ["top", "bottom"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "ffv1", "mpeg4"])
def test_interlaced_video_is_deinterlaced(codec: str, first: str, picture: Picture) -> None:
    if codec not in av.codecs_available:
        pytest.skip("this build of FFmpeg has no H.264 encoder")
    still = picture(96, 128)
    frames = []
    for number in range(9):
        # Still above, below it a bright bar that moves by six pixels between the two fields of a frame.
        fields = [still.copy(), still.copy()]
        for field, image in enumerate(fields):
            at = 12 * number + 6 * field
            image[48:], image[48:, at : at + 12] = 20, 230
        woven, second = fields[0].copy(), int(first == "top")
        woven[second::2] = fields[1][second::2]
        frames.append(woven)
    with av.open("v.mkv", "w") as file:
        stream = file.add_stream(
            codec,
            rate=25,
            options={"flags": "+ildct+ilme", "qmin": "1", "qmax": "3", "field_order": "tt" if first == "top" else "bb"},
        )
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        graph = av.filter.Graph()
        ends = graph.add_buffer(width=128, height=96, format=av.VideoFormat("gray"), time_base=Fraction(1, 25))
        graph.link_nodes(
            ends,
            graph.add("setfield", "tff" if first == "top" else "bff"),
            graph.add("format", "yuv420p"),
            graph.add("buffersink"),
        ).configure()
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="gray")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            graph.vpush(frame)
            file.mux(stream.encode(graph.vpull()))
        file.mux(stream.encode())
    with opened("v.mkv", "vis") as source:
        grabs = list(iter(source.read, None))
        assert any("interlaced" in remark for remark in source.remarks)
    assert times_ms(grabs) == [40 * number for number in range(9)]
    for number, grab in enumerate(grabs):
        gray = grab.image[..., 1].astype(float)
        assert np.abs(gray[4:44] - still[4:44]).mean() < 8
        # No comb: neighboring lines of the bar agree, and it is where the first field shows it.
        assert np.abs(np.diff(gray[56:90], axis=0)).mean() < 4
        where = np.flatnonzero(gray[72] > 125)
        assert abs(where.min() - 12 * number) <= 2
        assert abs(where.max() - (12 * number + 11)) <= 8


# Times


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4", "v.mov", "v.avi"])
@pytest.mark.parametrize("rate", [9.0, 25.0, 30000 / 1001])
def test_times_come_from_the_container(name: str, rate: float, picture: Picture) -> None:
    codec, pixels = ("mpeg4", "yuv420p") if name != "v.mkv" else ("ffv1", "bgr0")
    write_video(name, panning(picture, 5), rate, codec=codec, pixels=pixels)
    with opened(f"file://{name}", "vis") as source:
        grabs = list(iter(source.read, None))
        assert source.clock == CLOCK_CONTAINER
        assert source.rate_hz == pytest.approx(rate, abs=0.1)
        assert not source.live
    assert times_ms(grabs) == pytest.approx([1000 * number / rate for number in range(5)], abs=1.0)


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4", "v.mov", "v.ts"])
def test_frames_of_variable_rate_and_of_two_directions(name: str, picture: Picture) -> None:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    times = [0, 40, 50, 120, 121, 300, 1300, 1340, 1400, 1500]
    frames = panning(picture, 10)
    write_video(name, frames, codec=codec, pixels="yuv420p", times=times, options={"bf": "2"})
    grabs = read_all(name, "vis")
    start = 0.0 if name != "v.ts" else grabs[0].time_ns / MS
    assert [time - start for time in times_ms(grabs)] == pytest.approx(times, abs=1.0)
    shown = [int(np.argmin([np.abs(grab.image.astype(int) - frame).mean() for frame in frames])) for grab in grabs]
    assert shown == list(range(10))


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4"])
def test_a_container_that_starts_late_keeps_its_start(name: str, picture: Picture) -> None:
    times = [500, 540, 580]
    codec, pixels = ("ffv1", "bgr0") if name == "v.mkv" else ("mpeg4", "yuv420p")
    write_video(name, panning(picture, 3), codec=codec, pixels=pixels, times=times)
    assert times_ms(read_all(name, "vis")) == pytest.approx(times, abs=1.0)


def test_a_repeated_time_stamp_concerns_one_frame(picture: Picture) -> None:
    times = [0, 40, 40, 300, 301, 900, 2900]
    write_video("v.mkv", panning(picture, 7), times=times)
    grabs = read_all("v.mkv", "vis")
    others = [time for number, time in enumerate(times_ms(grabs)) if number != 2]
    assert others == pytest.approx([time for number, time in enumerate(times) if number != 2], abs=1.0)


def test_time_stamps_that_stand_still_give_way_to_the_rate(picture: Picture) -> None:
    write_video("v.mkv", panning(picture, 20), times=[0] * 20)
    times = times_ms(read_all("v.mkv", "vis"))
    assert all(later > earlier for earlier, later in itertools.pairwise(times[4:]))


def test_a_stream_without_a_container_is_counted(picture: Picture) -> None:
    write_video("v.m4v", panning(picture, 5), codec="mpeg4", pixels="yuv420p", format="m4v")
    with opened("file://v.m4v?rate=10", "vis") as source:
        grabs = list(iter(source.read, None))
        assert source.clock == CLOCK_COUNT
    assert times_ms(grabs) == [0, 100, 200, 300, 400]


def test_the_clock_of_a_transport_stream_starts_anywhere(picture: Picture) -> None:
    write_video("v.ts", panning(picture, 3), codec="mpeg2video", pixels="yuv420p")
    write_video("v.mkv", panning(picture, 3))
    assert opened("v.ts").absolute
    assert not opened("v.mkv").absolute


# Streams


def test_audio_and_cover_art_are_no_video(picture: Picture) -> None:
    with av.open("audio.mka", "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        file.mux(stream.encode(sound))
    with pytest.raises(InputError) as caught, opened("audio.mka"):
        pass
    assert one_sentence(str(caught.value))
    with av.open("cover.mp4", "w") as file:
        cover, video = file.add_stream("mjpeg", rate=25), file.add_stream("mpeg4", rate=25)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        cover.disposition = av.stream.Disposition.attached_pic
        file.mux(cover.encode(av.VideoFrame(16, 16, "yuvj420p")))
        for image in panning(picture, 3):
            file.mux(video.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        file.mux(video.encode())
    assert [grab.image.shape for grab in read_all("cover.mp4", "vis")] == [(48, 64, 3)] * 3


def test_the_first_of_several_video_streams_is_read_and_said(picture: Picture) -> None:
    with av.open("v.mkv", "w") as file:
        streams = [file.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream, size in zip(streams, (64, 32), strict=True):
            stream.width, stream.height, stream.pix_fmt = size, size, "gray"
        for stream, size in zip(streams, (64, 32), strict=True):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(size, size), format="gray")))
            file.mux(stream.encode())
    with opened("v.mkv") as source:
        grab = source.read()
        assert grab is not None
        assert grab.image.shape == (64, 64)
        assert any("2 video streams" in remark for remark in source.remarks)


def test_one_frame_and_none(picture: Picture) -> None:
    write_video("one.mp4", panning(picture, 1), codec="mpeg4", pixels="yuv420p")
    assert len(read_all("one.mp4", "vis")) == 1
    with av.open("none.mkv", "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        stream.encode(av.VideoFrame(64, 48, "gray"))  # begins the file, without the frame
        file.start_encoding()
    with pytest.raises(InputError):
        read_all("none.mkv")


def test_only_streams_of_whole_frames_keep_the_noise(picture: Picture) -> None:
    for name, codec, pixels, keeps in (
        ("f.mkv", "ffv1", "bgr0", True), ("j.avi", "mjpeg", "yuvj420p", True), ("m.mp4", "mpeg4", "yuv420p", False),
    ):  # fmt: skip
        write_video(name, panning(picture, 2), codec=codec, pixels=pixels)
        with opened(name) as source:
            assert source.keeps_noise is keeps


def test_a_name_with_colons_and_percent_signs_is_a_file(picture: Picture) -> None:
    frame = picture(48, 64, 3)
    write_video("v.mkv", [frame])
    for name in ("http:x.mkv", "a:b 100%.mkv", "caf\udce9.mkv"):
        Path(name).write_bytes(Path("v.mkv").read_bytes())
        assert np.array_equal(read_all(name, "vis")[0].image, frame)


# Damage


def spoil(source: str, target: str, numbers: Sequence[int], change: Callable[[bytes], bytes]) -> None:
    """Copy a video with some of its packets changed."""
    with av.open(source) as file, av.open(target, "w") as copy:
        stream = copy.add_stream_from_template(file.streams.video[0])
        number = 0
        for packet in file.demux(video=0):
            if packet.dts is None:
                continue
            changed: Any = av.Packet(change(bytes(packet)) if number in numbers else bytes(packet))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream, changed.duration = packet.is_keyframe, stream, packet.duration
            copy.mux(changed)
            number += 1


def zeroed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(max(24, len(data) // 4)) + data[middle + max(24, len(data) // 4) :]


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def blank(data: bytes) -> bytes:
    return bytes(len(data))


CODECS = [
    ("ffv1", "bgr0", "mkv", {}), ("ffv1", "bgr0", "avi", {"g": "1"}),
    ("mjpeg", "yuvj420p", "avi", {}), ("png", "rgb24", "mov", {}),
    ("mpeg4", "yuv420p", "mp4", {"g": "12"}), ("mpeg4", "yuv420p", "mkv", {"g": "12", "bf": "2"}),
    ("libx264", "yuv420p", "mp4", {"g": "12", "bf": "2"}), ("libx264", "yuv420p", "mkv", {"g": "12", "preset": "ultrafast"}),
    ("libx264", "yuv420p", "ts", {"g": "12", "bf": "0"}),
]  # fmt: skip


@pytest.mark.parametrize("change", [zeroed, halved, blank])
@pytest.mark.parametrize(("codec", "pixels", "suffix", "options"), CODECS)
def test_damage_in_the_middle_costs_only_its_frames(
    codec: str, pixels: str, suffix: str, options: dict[str, str], change: Callable[[bytes], bytes], picture: Picture
) -> None:
    if codec not in av.codecs_available:
        pytest.skip("this build of FFmpeg has no H.264 encoder")
    write_video(f"whole.{suffix}", panning(picture, 60), codec=codec, pixels=pixels, options=options)
    whole = {round(grab.time_ns / MS): grab.image for grab in read_all(f"whole.{suffix}", "ir")}
    assert len(whole) == 60
    spoil(f"whole.{suffix}", f"spoiled.{suffix}", range(20, 25), change)
    grabs, damaged, error = read_with_damage(f"spoiled.{suffix}")
    assert error is None
    # In a transport stream, a frame of zeros is no frame any more.
    assert len(grabs) + damaged == (60 if suffix != "ts" or change is not blank else 55)
    # Frames of these codecs depend on the twelve of their group at most.
    assert 5 <= damaged <= (5 if options.get("g") == "1" or codec in ("mjpeg", "png") else 24)
    # Each frame that is left is exactly the right one, at its time.
    for grab in grabs:
        assert np.array_equal(grab.image, whole[round(grab.time_ns / MS)]), grab.index


@pytest.mark.parametrize(("codec", "pixels", "suffix", "options"), CODECS)
def test_healthy_files_are_not_called_damaged(
    codec: str, pixels: str, suffix: str, options: dict[str, str], picture: Picture
) -> None:
    if codec not in av.codecs_available:
        pytest.skip("this build of FFmpeg has no H.264 encoder")
    times = [round(37 * number + 11 * (number % 3)) for number in range(40)] if suffix in ("mkv", "mp4") else None
    write_video(f"v.{suffix}", panning(picture, 40), codec=codec, pixels=pixels, options=options, times=times)
    grabs, damaged, error = read_with_damage(f"v.{suffix}")
    assert (len(grabs), damaged, error) == (40, 0, None)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "container"),
    [
        ("v.mkv", "ffv1", "bgr0", {}),
        ("v.avi", "mjpeg", "yuvj420p", {}),
        ("v.mp4", "mpeg4", "yuv420p", {"movflags": "faststart"}),
        ("v.mov", "mjpeg", "yuvj420p", {"movflags": "faststart"}),
    ],
)
def test_a_file_that_breaks_off_gives_its_good_frames_and_says_so(
    name: str, codec: str, pixels: str, container: dict[str, str], picture: Picture
) -> None:
    options = {"g": "10", "qmin": "2", "qmax": "2"}
    write_video(name, panning(picture, 40), codec=codec, pixels=pixels, options=options, container_options=container)
    whole = read_all(name, "vis")
    assert not is_cut_off(Path(name))
    data = Path(name).read_bytes()
    Path(f"cut-{name}").write_bytes(data[: len(data) * 55 // 100])
    assert is_cut_off(Path(f"cut-{name}"))
    grabs, damaged, error = read_with_damage(f"cut-{name}")
    assert error is not None
    assert error.exit_code == 4
    assert error.expected == 40
    assert 15 <= len(grabs) <= 24
    assert len(grabs) + damaged == error.got
    with opened(f"cut-{name}", "vis") as source:
        for good, grab in zip(whole, iter_good(source), strict=False):
            assert np.array_equal(grab.image, good.image)


def iter_good(source: Source) -> list[Grab]:
    grabs: list[Grab] = []
    while True:
        try:
            grab = source.read()
        except CorruptFrameError:
            continue
        except InputError:
            return grabs
        if grab is None:
            return grabs
        grabs.append(grab)


def test_a_file_of_damage_alone_is_an_error(picture: Picture) -> None:
    write_video("v.avi", panning(picture, 5), codec="mjpeg", pixels="yuvj420p")
    spoil("v.avi", "bad.avi", range(5), blank)
    grabs, damaged, error = read_with_damage("bad.avi")
    assert (grabs, damaged) == ([], 5)
    assert error is not None
    assert error.exit_code == 4


def test_options_of_a_file_are_checked() -> None:
    for text in ("file://x.mkv?format=y17", "file://x.mkv?width=9"):
        with pytest.raises(UsageError):
            opened(text)
