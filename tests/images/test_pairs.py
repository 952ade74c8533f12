"""Matching files by stem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import InputError
from refusion_edge.images.io import write_image
from refusion_edge.images.pairs import find_pairs, fingerprint, read_pair
from tests.raising import raises


def make(folder: str, *names: str) -> None:
    for name in names:
        write_image(Path(folder) / name, np.arange(100, dtype=np.uint8).reshape(10, 10))


def test_two_files_are_one_pair() -> None:
    make("x", "left.png", "right.jpg")
    (pair,) = find_pairs("x/left.png", "x/right.jpg").pairs
    assert (pair.name, pair.a, pair.b) == ("left", Path("x/left.png"), Path("x/right.jpg"))


def test_folders_are_matched_by_stem_whatever_the_format() -> None:
    make("ir", "2.png", "1.png", "only_ir.png")
    make("vis", "1.jpg", "2.tiff", "only_vis.png")
    Path("vis/notes.txt").write_text("no image")
    found = find_pairs("ir", "vis")
    assert [(pair.name, pair.a.name, pair.b.name) for pair in found.pairs] == [
        ("1", "1.png", "1.jpg"),
        ("2", "2.png", "2.tiff"),
    ]
    assert (found.only_a, found.only_b) == ((Path("ir/only_ir.png"),), (Path("vis/only_vis.png"),))


def test_patterns_choose_files() -> None:
    make("ir", "day_1.png", "night_1.png", "night_2.png")
    make("vis", "day_1.png", "night_1.png", "night_2.png")
    assert [pair.name for pair in find_pairs("ir/night_*.png", "vis").pairs] == ["night_1", "night_2"]


def test_a_name_with_brackets_is_a_file() -> None:
    make("x", "shot[1].png", "b.png")
    assert find_pairs("x/shot[1].png", "x/b.png").pairs[0].a == Path("x/shot[1].png")


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        ("ir", "other", ("ir (1, 2)", "other (3)")),
        ("ir", "ir/1.png", ("folder or pattern ir", "file ir/1.png")),
        ("ir", "empty", ("empty",)),
        ("ir/*.jpg", "ir", ("ir/*.jpg",)),
        ("twice", "ir", ("1.jpg", "1.png")),
    ],
)
def test_what_cannot_be_matched_is_refused(a: str, b: str, named: tuple[str, ...]) -> None:
    make("ir", "1.png", "2.png")
    make("other", "3.png")
    make("twice", "1.png", "1.jpg")
    Path("empty").mkdir()
    with raises(InputError, *named):
        find_pairs(a, b)


def test_fingerprint_depends_on_pixels_only() -> None:
    make("ir", "1.png")
    make("vis", "1.png")
    (pair,) = find_pairs("ir", "vis").pairs
    before = fingerprint([read_pair(pair)])
    make("ir", "1.png")
    assert fingerprint([read_pair(pair)]) == before
    write_image("ir/1.png", np.zeros((10, 10), np.uint8))
    assert fingerprint([read_pair(pair)]) != before
