"""Image folders and numbered files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from refusion_edge.errors import InputError
from refusion_edge.images.io import write_image
from refusion_edge.stream.frames import MS
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import (
    CLOCK_COUNT,
    CLOCK_RECORDED,
    Grab,
    Source,
)
from refusion_edge.stream.uri import parse_source
from tests.raising import raises


def opened(text: str, side: str = "ir") -> Source:
    return open_source(parse_source(text), "ir" if side == "ir" else "vis")


def read_all(text: str, side: str = "ir") -> list[Grab]:
    with opened(text, side) as source:
        return list(itertools.takewhile(lambda grab: grab is not None, iter(source.read, None)))


def test_sixteen_bit_png_folder_keeps_every_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    frame = rng.integers(0, 65536, (48, 64)).astype(np.uint16)
    write_image(tmp_path / "0.png", frame)
    assert np.array_equal(read_all(str(tmp_path))[0].image, frame)


def test_numbered_files_keep_the_times_of_missing_ones(tmp_path: Path) -> None:
    for number in (3, 4, 6):
        write_image(tmp_path / f"f_{number:04d}.png", np.full((8, 8), number, np.uint8))
    grabs = read_all(f"file://{tmp_path}/f_%04i.png?rate=10")
    assert [grab.time_ns // MS for grab in grabs] == [0, 100, 300]
    assert opened(f"{tmp_path}/f_%04i.png").clock == CLOCK_COUNT


def test_recorded_times_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "frames.csv").write_text("file,time_ns\na.png,1000\nb.png,34000000\n")
    assert [grab.time_ns for grab in read_all(str(tmp_path))] == [1000, 34_000_000]
    assert opened(str(tmp_path)).clock == CLOCK_RECORDED
    (tmp_path / "frames.csv").write_text("file,time_ns\na.png,soon\n")
    with raises(InputError, "frames.csv", "time_ns"):
        opened(str(tmp_path))


def test_recorded_times_with_a_byte_order_mark_are_read() -> None:
    for index in range(2):
        write_image(f"cam/{index}.png", np.full((9, 9), index, np.uint8))
    Path("cam/frames.csv").write_bytes(b"\xef\xbb\xbffile,time_ns\n0.png,100\n1.png,250\n")
    assert [grab.time_ns for grab in read_all("cam")] == [100, 250]
