"""Image folders and numbered files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import InputError
from refusion_edge.images.io import write_image
from refusion_edge.stream.frames import MS
from refusion_edge.stream.sources.registry import open_pair, open_source
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


def write_levels(folder: Path, names: list[str]) -> None:
    """One image for each name; its level is the position in the list."""
    folder.mkdir()
    for level, name in enumerate(names):
        write_image(folder / name, np.full((8, 8), level, np.uint8))


def pair_of(ir: Path, vis: Path) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Time in ms and level of every frame of two folders that are streamed together, at 10 per second."""
    sources = open_pair(parse_source(f"file://{ir}?rate=10"), parse_source(f"file://{vis}?rate=10"))
    found = [[(grab.time_ns // MS, int(grab.image[0, 0])) for grab in iter(source.read, None)] for source in sources]
    return found[0], found[1]


@pytest.mark.parametrize(
    "names",
    [
        [f"frame_{number}.png" for number in range(24)],
        [f"{number}.png" for number in range(8, 13)],
        [f"cam2_f{number:04d}_ir.png" for number in range(9997, 10003)],
        ["a9b1.png", "a9b2.png", "a9b10.png", "a10b1.png"],
        [f"t{10**25 + number}.png" for number in range(3)],
    ],
)
def test_frames_come_in_natural_order(tmp_path: Path, names: list[str]) -> None:
    write_levels(tmp_path / "x", names)
    grabs = read_all(str(tmp_path / "x"))
    assert [int(grab.image[0, 0]) for grab in grabs] == list(range(len(names)))
    assert [grab.index for grab in grabs] == list(range(len(names)))


def test_two_folders_meet_by_number(tmp_path: Path) -> None:
    write_levels(tmp_path / "ir", [f"ir_{number}.png" for number in (2, 3, 5, 11)])
    write_levels(tmp_path / "vis", [f"{number:06d}.jpg" for number in range(1, 12)])
    ir, vis = pair_of(tmp_path / "ir", tmp_path / "vis")
    assert ir == [(100, 0), (200, 1), (400, 2), (1000, 3)]
    assert [time for time, _ in vis] == list(range(0, 1100, 100))


def test_two_folders_meet_by_stem_where_there_is_no_number(tmp_path: Path) -> None:
    write_levels(tmp_path / "ir", ["dawn.png", "noon.png", "night.png"])
    write_levels(tmp_path / "vis", ["night.png", "noon.png"])
    ir, vis = pair_of(tmp_path / "ir", tmp_path / "vis")
    assert dict(ir) == {0: 0, 100: 2, 200: 1}
    assert dict(vis) == {100: 0, 200: 1}


def test_names_that_are_times_give_the_order_only(tmp_path: Path) -> None:
    stamps = [1_700_000_000_123, 1_700_000_000_456, 1_700_000_003_999]
    write_levels(tmp_path / "ir", [f"{stamp}.png" for stamp in stamps])
    write_levels(tmp_path / "vis", [f"{stamp}.png" for stamp in (stamps[0], stamps[2])])
    ir, vis = pair_of(tmp_path / "ir", tmp_path / "vis")
    assert ir == [(0, 0), (100, 1), (200, 2)]
    assert vis == [(0, 0), (200, 1)]


def test_folders_without_a_common_number_or_stem_are_refused(tmp_path: Path) -> None:
    write_levels(tmp_path / "ir", ["a.png", "b.png"])
    write_levels(tmp_path / "vis", ["c.png", "d.png"])
    with pytest.raises(InputError) as caught:
        pair_of(tmp_path / "ir", tmp_path / "vis")
    assert caught.value.exit_code == 4
    write_levels(tmp_path / "twice", ["f_1.png", "f_01.png"])
    with raises(InputError, "f_1.png", "f_01.png"):
        opened(str(tmp_path / "twice"))


def test_companions_of_macos_are_no_frames(tmp_path: Path) -> None:
    write_levels(tmp_path / "x", ["1.png", "2.png"])
    (tmp_path / "x" / "._1.png").write_bytes(b"\0\5\x16\7")
    assert len(read_all(str(tmp_path / "x"))) == 2


def test_recorded_times_belong_to_their_names(tmp_path: Path) -> None:
    write_levels(tmp_path / "x", ["f_9.png", "f_10.png"])
    (tmp_path / "x" / "frames.csv").write_text("\ufefffile,time_ns\nf_10.png,2000\nf_9.png,1000\n")
    assert [(grab.time_ns, int(grab.image[0, 0])) for grab in read_all(str(tmp_path / "x"))] == [(1000, 0), (2000, 1)]
