"""Decoders: what a file says is what is read, in every layout, and damage is refused."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.images.io import read_image, read_still
from tests.conftest import one_sentence

Picture = Callable[..., Array]


def tiff(pixels: Array, **options: Any) -> Path:
    path = Path("x.tiff")
    tifffile.imwrite(path, pixels, **options)
    return path


def jpeg(pixels: Array, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def refusal(data: bytes, name: str = "x.bin") -> InputError:
    Path(name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_image(name)
    assert one_sentence(str(caught.value))
    assert name in caught.value.problem
    return caught.value


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"compression": "lzw"},
    {"compression": "zlib", "predictor": True},
    {"compression": "packbits", "rowsperstrip": 5},
    {"tile": (16, 16)},
    {"tile": (16, 16), "compression": "lzw"},
    {"byteorder": ">"},
    {"bigtiff": True},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_layouts_give_the_stored_values(
    rng: np.random.Generator, layout: dict[str, Any], dtype: str, channels: int
) -> None:
    kind = np.dtype(dtype)
    limits = (0, 1) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    pixels = np.linspace(*limits, 21 * 34 * channels).astype(kind).reshape(21, 34, channels)
    pixels = pixels[..., 0] if channels == 1 else pixels
    read = read_image(tiff(pixels, photometric="rgb" if channels == 3 else "minisblack", **layout))
    assert read.shape == pixels.shape
    assert np.array_equal(read.astype(np.float64), pixels.astype(np.float64))
    assert read.dtype.isnative


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_separate_planes_of_a_tiff(picture: Picture, dtype: type, compression: str | None) -> None:
    image = picture(21, 34, 3, dtype)
    path = tiff(np.moveaxis(image, -1, 0), photometric="rgb", planarconfig="separate", compression=compression)
    assert np.array_equal(read_image(path), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(picture: Picture, dtype: type) -> None:
    image = picture(21, 34, 1, dtype)
    assert np.array_equal(read_image(tiff(np.iinfo(dtype).max - image, photometric="miniswhite")), image)


def test_bilevel_tiff_both_ways(picture: Picture) -> None:
    bits = picture(21, 34) > 128
    expected = np.where(bits, 255, 0)
    assert np.array_equal(read_image(tiff(bits, photometric="minisblack")), expected)
    assert np.array_equal(read_image(tiff(~bits, photometric="miniswhite")), expected)


def test_palette_of_a_tiff(picture: Picture, rng: np.random.Generator) -> None:
    colors = rng.integers(0, 256, (3, 256)).astype(np.uint16)
    indices = picture(21, 34)
    read = read_image(tiff(indices, photometric="palette", colormap=colors * 257))
    assert np.array_equal(read, colors.T.astype(np.uint8)[indices])


def test_extra_samples_are_dropped_unless_they_could_be_the_image(picture: Picture) -> None:
    image = picture(21, 34, 3, np.uint16)
    alpha = np.full((21, 34, 1), 7, np.uint16)
    assert np.array_equal(read_image(tiff(np.dstack((image, alpha)), photometric="rgb", extrasamples=["unassalpha"])), image)
    gray = np.dstack((image[..., :1], alpha))
    path = tiff(gray, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(path), image[..., 0])
    bands = np.dstack((image, image))
    refusal(tiff(bands, photometric="minisblack", planarconfig="contig").read_bytes())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_orientations_of_all_formats(picture: Picture, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(picture(24, 31, 3)).save("x.bin", kind, exif=exif, **options)
    with Image.open("x.bin") as stored:
        expected = np.array(ImageOps.exif_transpose(stored))
    still = read_still("x.bin")
    assert still.encoding.orientation == orientation
    assert np.array_equal(still.pixels, expected)


@pytest.mark.parametrize(
    ("options", "tag", "white"),
    [
        ({"bitspersample": 12}, "BitsPerSample", 4095),
        ({"extratags": [(281, 3, 1, 4095, True)]}, "MaxSampleValue", 4095),
        # The largest value that occurs instead of the largest possible one.
        ({"extratags": [(281, 3, 1, 4001, True)]}, "MaxSampleValue", 4095),
        ({"ome": True, "metadata": {"SignificantBits": 12, "axes": "YX"}}, "SignificantBits", 4095),
    ],
)
def test_significant_bits_of_a_tiff(picture: Picture, options: dict[str, Any], tag: str, white: int) -> None:
    pixels = np.minimum(picture(21, 34, 1, np.uint16) >> 4, 4001).astype(np.uint16)
    still = read_still(tiff(pixels, **options))
    assert np.array_equal(still.pixels, pixels)
    assert (still.encoding.white, still.encoding.white_from, still.encoding.bits) == (white, tag, 12)


def test_a_tag_that_the_values_contradict_is_not_believed(picture: Picture) -> None:
    still = read_still(tiff(picture(21, 34, 1, np.uint16), extratags=[(281, 3, 1, 4095, True)]))
    assert still.encoding.white == 65535


def test_unit_and_missing_values_of_a_tiff(picture: Picture) -> None:
    metadata = '<GDALMetadata><Item name="UNITTYPE" sample="0" role="unittype">K</Item></GDALMetadata>'
    tags = [(42112, 2, 0, metadata, True), (42113, 2, 0, "-9999", True)]
    encoding = read_still(tiff(picture(12, 15, 1, np.float32), extratags=tags)).encoding
    assert (encoding.unit, encoding.no_data) == ("K", -9999.0)


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
def test_significant_bits_of_a_png(picture: Picture, bits: int) -> None:
    pixels = (picture(21, 34, 1, np.uint16) >> (16 - bits)).astype(np.uint16)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    Path("low.png").write_bytes(png(34, 21, 16, 0, rows, chunk(b"sBIT", bytes([bits]))))
    low = read_still("low.png")
    assert (low.encoding.bits, low.encoding.white_from) == (bits, "sBIT")
    assert np.array_equal(low.pixels, pixels)
    # As the standard has it, the significant bits are the high ones.
    rows = b"".join(b"\0" + row.tobytes() for row in (pixels << (16 - bits)).astype(">u2"))
    Path("high.png").write_bytes(png(34, 21, 16, 0, rows, chunk(b"sBIT", bytes([bits]))))
    assert read_still("high.png").encoding.white == 65535


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png_of_less_than_eight_bits(depth: int) -> None:
    levels = (1 << depth) - 1
    row = np.arange(16) % (levels + 1)
    bits = "".join(format(value, f"0{depth}b") for value in row)
    packed = b"\0" + int(bits, 2).to_bytes(2 * depth, "big")
    Path("x.png").write_bytes(png(16, 9, depth, 0, packed * 9))
    assert read_image("x.png").tolist() == [[int(value) * 255 // levels for value in row]] * 9


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF"])
def test_pixel_modes_as_pillow_reads_them(picture: Picture, mode: str, kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    try:
        Image.fromarray(picture(24, 31, 3)).convert(mode).save("x.bin", kind, **options)
    except OSError:
        return  # the format has no such mode
    with Image.open("x.bin") as stored:
        expected = np.array(stored.convert("RGB"))
    read = read_image("x.bin")
    assert np.array_equal(np.dstack([read] * 3) if read.ndim == 2 else read, expected)


def test_transparent_color_of_a_png_is_an_ordinary_color(picture: Picture) -> None:
    pixels = picture(12, 15, 3)
    Image.fromarray(pixels).save("x.png", transparency=tuple(int(value) for value in pixels[3, 4]))
    assert np.array_equal(read_image("x.png"), pixels)


@pytest.mark.parametrize("most", [255, 1000, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_pnm_is_scaled_by_its_own_largest_value(rng: np.random.Generator, most: int, kind: bytes) -> None:
    channels = 3 if kind in (b"P3", b"P6") else 1
    values = rng.integers(0, most + 1, (9, 11, channels))
    if kind in (b"P2", b"P3"):
        body = " ".join(map(str, values.ravel())).encode()
    else:
        body = values.astype(">u2" if most > 255 else np.uint8).tobytes()
    Path("x.pnm").write_bytes(kind + b"\n# a comment 3\n11 9\n%d\n" % most + body)
    still = read_still("x.pnm")
    assert still.encoding.white == most
    assert np.array_equal(still.pixels.reshape(values.shape), values)
    Path("x.pnm").write_bytes(Path("x.pnm").read_bytes()[: -len(body) // 2])
    with pytest.raises(InputError):
        read_image("x.pnm")


def test_pnm_below_eight_bits_and_bitmaps() -> None:
    Path("x.pgm").write_bytes(b"P5 8 1 15\n" + bytes([0, 1, 2, 3, 7, 8, 14, 15]))
    assert read_image("x.pgm").tolist() == [[0, 17, 34, 51, 119, 136, 238, 255]]
    Path("x.pbm").write_bytes(b"P4 10 2\n" + bytes([0b10100000, 0b01000000, 0, 0xFF]))
    assert read_image("x.pbm").tolist() == [[0, 255, 0, 255, 255, 255, 255, 255, 255, 0], [255] * 8 + [0, 0]]
    Path("x.pbm").write_bytes(b"P1 3 2\n10 1\n#c\n010")
    assert read_image("x.pbm").tolist() == [[0, 255, 0], [255, 0, 255]]
    refusal(b"P5 8 1 15\n" + bytes([16] * 8))


def test_twelve_bit_jpeg_keeps_its_bits(rng: np.random.Generator) -> None:
    pixels = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)
    Path("x.jpg").write_bytes(imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12))
    still = read_still("x.jpg")
    assert still.encoding.white == 4095
    assert np.abs(still.pixels.astype(int) - pixels).max() < 60


def test_cmyk_of_adobe(picture: Picture) -> None:
    image = picture(40, 56, 3)
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG", quality=98)
    Path("x.jpg").write_bytes(buffer.getvalue())
    assert np.abs(read_image("x.jpg").astype(int) - image).mean() <= 3


@pytest.mark.parametrize("tail", [bytes(5000), b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 20, b"\xff\xd8\xff\xe0junk"])
def test_data_after_a_jpeg_is_none_of_its_pixels(picture: Picture, tail: bytes) -> None:
    data = jpeg(picture(40, 56, 3))
    Path("plain.jpg").write_bytes(data)
    Path("motion.jpg").write_bytes(data + tail)
    assert np.array_equal(read_image("motion.jpg"), read_image("plain.jpg"))


def test_zeros_that_fill_the_last_scan_are_harmless(picture: Picture) -> None:
    data = jpeg(picture(40, 56, 3))
    Path("plain.jpg").write_bytes(data)
    Path("padded.jpg").write_bytes(data[:-2] + bytes(9) + data[-2:])
    assert np.array_equal(read_image("padded.jpg"), read_image("plain.jpg"))


def textured(rng: np.random.Generator) -> Array:
    coarse = rng.integers(0, 256, (30, 40, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)) // 2 + rng.integers(
        0, 60, (240, 320, 3), np.uint8
    )


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("place", [0.3, 0.5, 0.65])
def test_a_damaged_jpeg_is_refused(rng: np.random.Generator, options: dict[str, Any], place: float) -> None:
    data = jpeg(textured(rng), **options)
    at = int(len(data) * place)
    for damaged in (
        data[:at] + bytes(600) + data[at + 600 :],  # a hole in a sparse file
        data[:at] + data[at + 1400 :],  # a lost packet
        data[:at] + b"\xff\xd9",  # closed early
    ):
        refusal(damaged)


def test_a_short_hole_is_noticed_where_decoders_find_their_place_again(rng: np.random.Generator) -> None:
    data = jpeg(textured(rng))
    for at in range(len(data) // 3, len(data) - 400, len(data) // 20):
        refusal(data[:at] + bytes(48) + data[at + 48 :])


def test_lost_restart_intervals_are_noticed(rng: np.random.Generator) -> None:
    data = jpeg(textured(rng), restart_marker_blocks=20)
    marks = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    refusal(data[: marks[3]] + data[marks[4] :])
    refusal(data[: marks[3]] + data[marks[11] :])  # eight of them: their numbers start again


def test_missing_scans_of_a_progressive_jpeg_are_noticed(rng: np.random.Generator) -> None:
    data = jpeg(textured(rng), progressive=True)
    last = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    assert "scan" in refusal(data[:last] + b"\xff\xd9").problem


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_flat_images_hold_long_runs_of_zeros_and_are_whole(options: dict[str, Any], mode: str) -> None:
    pixels = np.zeros((800, 900) if mode == "L" else (800, 900, 3), np.uint8)
    pixels[300:400, 200:500] = 255
    Path("x.jpg").write_bytes(jpeg(pixels, **options))
    assert np.abs(read_image("x.jpg").astype(int) - pixels).max() <= 12


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_a_cut_tiff_is_refused(picture: Picture, options: dict[str, Any]) -> None:
    path = tiff(picture(60, 80, 1, np.uint16), **options)
    with tifffile.TiffFile(path) as file:
        end = max(a + b for a, b in zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    data = path.read_bytes()
    for cut in (end - 1, end - 40, end // 2):
        refusal(data[:cut])


def test_jpeg_inside_a_tiff_is_checked_as_strictly(rng: np.random.Generator) -> None:
    path = tiff(textured(rng), photometric="ycbcr", compression="jpeg", tile=(64, 64))
    assert read_image(path).shape == (240, 320, 3)
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[3] + file.pages[0].databytecounts[3] // 2
    data = path.read_bytes()
    refusal(data[:at] + bytes(100) + data[at + 100 :])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused_whatever_the_suffix(picture: Picture, kind: str) -> None:
    frames = [Image.fromarray(np.roll(picture(24, 31, 3), 5 * shift)) for shift in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    error = refusal(buffer.getvalue(), "x.png")
    assert (error.expected, error.got) == (1, 3)
    frames[0].save("still.png", kind)
    assert read_image("still.png").shape == (24, 31, 3)


def test_a_thumbnail_is_no_second_page(picture: Picture) -> None:
    image = picture(24, 31, 3)
    with tifffile.TiffWriter("x.tiff") as file:
        file.write(image[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(image, photometric="rgb")
    assert np.array_equal(read_image("x.tiff"), image)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?RADIANCE\n", "Radiance HDR"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypheic", "HEIF"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\x93NUMPY\x01\0", "NumPy"),
    ],
)
def test_formats_that_are_not_read_are_named(start: bytes, name: str) -> None:
    assert name in refusal(start + bytes(300), "x.tif").problem


def test_radiometric_data_of_flir_is_named(picture: Picture) -> None:
    data = jpeg(picture(40, 56, 3))
    segment = b"FLIR\0\1\0\0FFF\0" + bytes(40)
    Path("x.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    still = read_still("x.jpg")
    assert still.pixels.shape == (40, 56, 3)
    assert len(still.encoding.remarks) == 1
    assert "FLIR" in still.encoding.remarks[0]
    Path("y.jpg").write_bytes(data)
    assert read_still("y.jpg").encoding.remarks == ()
