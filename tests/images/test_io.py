"""Image files: what is read is what was stored, and a damaged file is told from a good one."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import DiskFullError, InputError, OutputError, UsageError
from refusion_edge.images import io
from refusion_edge.images.io import read_image, write_image
from tests.conftest import files_below
from tests.raising import raises

Picture = Callable[..., Array]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_formats_there_and_back(picture: Picture, suffix: str, channels: int, dtype: type) -> None:
    image = picture(21, 34, channels, dtype)
    write_image(f"x{suffix}", image)
    read = read_image(f"x{suffix}")
    assert read.dtype == image.dtype
    assert np.array_equal(read, image)


def test_jpeg_keeps_color_order_and_detail(picture: Picture) -> None:
    image = picture(40, 56, 3)
    write_image("x.jpg", image)
    assert np.abs(read_image("x.jpg").astype(int) - image).mean() <= 3


def test_float_tiff_is_read(picture: Picture) -> None:
    image = picture(12, 15, 1, np.float32)
    cv2.imwrite("x.tiff", image)
    assert np.array_equal(read_image("x.tiff"), image)


def test_alpha_is_dropped_and_color_kept(picture: Picture) -> None:
    image = picture(12, 15, 3)
    alpha = np.full((12, 15), 128, np.uint8)
    cv2.imwrite("x.png", np.dstack((image[..., ::-1], alpha)))
    assert np.array_equal(read_image("x.png"), image)


def test_palette_is_resolved() -> None:
    """A palette image of four red, green, blue and white pixels, written by hand."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0)
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255])
    pixels = zlib.compress(b"\0\0\1\0\2\3")
    Path("x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"PLTE", palette) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    assert read_image("x.png").tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF segment that holds nothing but an orientation."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_applied(picture: Picture, orientation: int, turn: Callable[[Array], Array]) -> None:
    write_image("flat.jpg", picture(24, 32, 3))
    flat = read_image("flat.jpg")
    Path("turned.jpg").write_bytes(with_orientation(Path("flat.jpg").read_bytes(), orientation))
    assert np.array_equal(read_image("turned.jpg"), turn(flat))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp", ".webp"])
@pytest.mark.parametrize("cut", [0.5, 0.9, 0.99])
def test_truncated_files_are_refused(picture: Picture, suffix: str, cut: float) -> None:
    encoded, data = cv2.imencode(suffix, picture(60, 80, 3))
    assert encoded
    Path(f"x{suffix}").write_bytes(data.tobytes()[: int(data.size * cut)])
    with raises(InputError, f"x{suffix}"):
        read_image(f"x{suffix}")


def test_thumbnail_does_not_hide_a_truncation(picture: Picture) -> None:
    thumbnail = cv2.imencode(".jpg", picture(16, 16, 3))[1].tobytes()
    whole = cv2.imencode(".jpg", picture(60, 80, 3))[1].tobytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    Path("whole.jpg").write_bytes(whole[:2] + segment + whole[2:])
    assert read_image("whole.jpg").shape == (60, 80, 3)
    Path("cut.jpg").write_bytes(whole[:2] + segment + whole[2:-300])
    with raises(InputError, "cut.jpg"):
        read_image("cut.jpg")


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("missing.png", None, "path"),
        ("empty.png", b"", "again"),
        ("text.png", b"not an image at all", "PNG"),
        ("clip.mp4", b"\0" * 100, "ffmpeg"),
    ],
)
def test_files_that_are_no_images(name: str, content: bytes | None, remedy: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    with raises(InputError, name, remedy=remedy):
        read_image(name)


def test_a_file_of_several_pages_is_refused(picture: Picture) -> None:
    cv2.imwritemulti("x.tiff", [picture(12, 12), picture(12, 12)])
    with raises(InputError, "x.tiff", expected=1, got=2):
        read_image("x.tiff")


def test_folder_is_no_image() -> None:
    Path("folder").mkdir()
    with raises(InputError, "folder"):
        read_image("folder")


@pytest.mark.parametrize("name", ["x.gif", "x", "x.npy"])
def test_unknown_output_formats_are_refused(picture: Picture, name: str) -> None:
    with raises(UsageError, name, remedy=".png, .jpg"):
        write_image(name, picture(9, 9))
    assert files_below(Path()) == []


def test_sixteen_bits_do_not_go_into_a_jpeg(picture: Picture) -> None:
    with raises(OutputError, "x.jpg", expected="uint8", got="uint16"):
        write_image("x.jpg", picture(9, 9, 1, np.uint16))
    assert files_below(Path()) == []


def test_unwritable_target_leaves_nothing_behind(picture: Picture) -> None:
    Path("file").write_text("in the way")
    with raises(OutputError, "file/x.png"):
        write_image("file/x.png", picture(9, 9))
    assert files_below(Path()) == ["file"]


def test_full_disk_leaves_nothing_behind(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def no_room(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_image("x.png", picture(9, 9))
    before = Path("x.png").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", no_room)
        with raises(DiskFullError, "x.png"):
            write_image("x.png", picture(9, 9))
    assert files_below(Path()) == ["x.png"]
    assert Path("x.png").read_bytes() == before


def png(width: int, height: int) -> bytes:
    """A gray PNG of zeros that unfolds to any size."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes((width + 1) * min(height, 64)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 16x16 pixels in one tile of any size."""
    tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (277, 1), (322, side), (323, side), (324, 200), (325, 256)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(400)


@pytest.mark.parametrize(
    "data",
    [
        png(16_000, 16_000),
        png(1, (1 << 31) - 1),
        tiled_tiff(1 << 16),
        b"P5 40000 40000 255\n" + bytes(100),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 30_000, -30_000) + bytes(100),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0\xff\x3f\0",
    ],
)
def test_pixels_are_counted_before_they_are_decoded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "decode", lambda *_: pytest.fail("it was decoded"))
    Path("x.png").write_bytes(data)
    with raises(InputError, "x.png", expected=100_000_000):
        read_image("x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp", ".webp", ".pgm", ".ppm"])
def test_the_limit_is_what_the_image_has(picture: Picture, suffix: str) -> None:
    cv2.imwrite(f"x{suffix}", picture(30, 41, 1 if suffix == ".pgm" else 3))
    assert read_image(f"x{suffix}", max_pixels=30 * 41).shape[:2] == (30, 41)
    with raises(InputError, expected=30 * 41 - 1, got=30 * 41):
        read_image(f"x{suffix}", max_pixels=30 * 41 - 1)


@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_images_are_regular_files_of_their_size(kind: str) -> None:
    if kind == "pipe":
        os.mkfifo("x.png")
    else:
        with Path("x.png").open("wb") as file:
            file.truncate(16 << 30)
    with raises(InputError, "x.png"):
        read_image("x.png")
