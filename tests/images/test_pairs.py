"""Matching files by stem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import InputError, UsageError
from refusion_edge.images.depth import find_depths, read_pairs
from refusion_edge.images.io import write_image
from refusion_edge.images.layouts import LAYOUTS, find_folders
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import find_pairs, fingerprint, read_pair
from refusion_edge.tasks import find_task
from tests.raising import raises


def make(folder: str, *names: str) -> None:
    for name in names:
        write_image(Path(folder) / name, np.arange(100, dtype=np.uint8).reshape(10, 10))


def test_two_files_are_one_pair() -> None:
    make("x", "left.png", "right.jpg")
    (pair,) = find_pairs("x/left.png", "x/right.jpg").pairs
    assert (pair.name, pair.a, pair.b) == ("left", Path("x/left.png"), Path("x/right.jpg"))


def test_folders_are_matched_by_stem_whatever_the_format() -> None:
    make("ir", "2.png", "1.png", "lonely.png")
    make("vis", "1.jpg", "2.tiff", "single.png")
    Path("vis/notes.txt").write_text("no image")
    found = find_pairs("ir", "vis")
    assert [(pair.name, pair.a.name, pair.b.name) for pair in found.pairs] == [
        ("1", "1.png", "1.jpg"),
        ("2", "2.png", "2.tiff"),
    ]
    assert (found.only_a, found.only_b) == ((Path("ir/lonely.png"),), (Path("vis/single.png"),))


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


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        ("00001_ir", "00001_vis", "00001"),
        ("IR1", "VIS1", "1"),
        ("FLIR_00001_PreviewData", "FLIR_00001_RGB", "FLIR_00001"),
        ("thermal-07", "visible-07", "07"),
        ("scene.ct", "scene.mri", "scene"),
        ("lytro-01-A", "lytro-01-B", "lytro-01"),
        ("DJI_0001_T", "DJI_0001_V", "DJI_0001"),
        ("scene_t001_ir", "scene_t001_vis", "scene_t001"),
        ("cam-v2_0001_ir", "cam-v2_0001_vis", "cam-v2_0001"),
        ("a_0001_thermal", "a_0001_rgb", "a_0001"),
        ("v_1_T", "v_1_V", "v_1"),
        ("001T", "001V", "001"),
    ],
)
def test_words_for_the_source_are_left_out_of_names(a: str, b: str, name: str) -> None:
    make("x", f"{a}.png")
    make("y", f"{b}.png", "other.png")
    found = find_pairs("x", "y")
    assert [(pair.name, pair.a.stem, pair.b.stem) for pair in found.pairs] == [(name, a, b)]
    assert found.by_word == 1
    assert any(f"{a}.png" in line for line in found.matching)


def test_words_that_are_parts_of_others_stay() -> None:
    make("x", "stairs.png")
    make("y", "stas.png", "vistas.png")
    with pytest.raises(InputError):
        find_pairs("x", "y")


def test_composed_and_decomposed_names_are_the_same() -> None:
    make("x", "Gru\u0308n.png")
    make("y", "Gr\u00fcn.png")
    assert [pair.a.name for pair in find_pairs("x", "y").pairs] == ["Gru\u0308n.png"]


def test_hidden_files_are_skipped_and_others_named() -> None:
    make("x", "1.png", "._1.png", ".DS_Store.png")
    make("y", "1.png")
    Path("x/Thumbs.db").write_bytes(b"x")
    Path("y/1.heic").write_bytes(b"x")
    found = find_pairs("x", "y")
    assert len(found.pairs) == 1
    assert {path.name for path in found.ignored} == {"Thumbs.db", "1.heic"}
    assert (found.only_a, found.only_b) == ((), ())
    assert "2 (" in found.remarks()[-1]


@pytest.mark.parametrize(
    ("a", "b", "layout"),
    [
        ("train/ir", "train/vi", "msrs"),
        ("Ir", "Vis", ""),
        ("Inf", "Vis", "m3fd-inf"),
        ("infrared/train", "visible/train", "llvip"),
        ("ir", "vis", ""),
    ],
)
def test_layouts_of_known_data_sets_are_found(a: str, b: str, layout: str) -> None:
    make(f"data/{a}", "1.png")
    make(f"data/{b}", "1.png")
    task = find_task("ir_vis")
    found = find_folders(Path("data"), task)
    assert (found.a, found.b, found.layout) == (Path("data", a), Path("data", b), layout)
    if layout:
        assert find_folders(Path("data"), task, layout) == found
    with raises(InputError, "data"):
        find_folders(Path("data"), task, "kaist")
    with raises(UsageError, "nowhere"):
        find_folders(Path("data"), task, "nowhere")


@pytest.mark.parametrize(
    ("task", "files", "layout", "names"),
    [
        (
            "multi_focus",
            ("lytro-01-A.jpg", "lytro-01-B.jpg", "lytro-20-A.jpg", "lytro-20-B.jpg"),
            "lytro",
            ["lytro-01", "lytro-20"],
        ),
        (
            "multi_exposure",
            (
                "input/House/House_A.png",
                "input/House/House_B.png",
                "input/ICCV_01/ICCV_01_A.jpg",
                "input/ICCV_01/ICCV_01_B.jpg",
            ),
            "mefb",
            ["House", "ICCV_01"],
        ),
        ("medical", ("CT/16003.png", "MRI/16003.png"), "harvard-ct", ["16003"]),
        ("medical", ("MRI/7.png", "test/PET/7.png", "test/MRI/7.png"), "harvard-pet", ["7"]),
        ("medical", ("SPECT/7.png", "MRI/7.png"), "harvard-spect", ["7"]),
    ],
)
def test_layouts_of_the_other_tasks_are_found(task: str, files: tuple[str, ...], layout: str, names: list[str]) -> None:
    for name in files:
        # A folder whose name is a pattern itself.
        path = Path("da[t]a", name)
        make(str(path.parent), path.name)
    for asked in (None, layout):
        found = find_folders(Path("da[t]a"), find_task(task), asked)
        assert found.layout == layout
        pairs = find_pairs(str(found.a), str(found.b)).pairs
        assert [pair.name for pair in pairs] == names
        assert all(pair.a != pair.b for pair in pairs)


def test_a_layout_is_for_one_task() -> None:
    for name, layout in LAYOUTS.items():
        other = "medical" if layout.task != "medical" else "ir_vis"
        with raises(UsageError, name, expected=layout.task, got=other):
            find_folders(Path(), find_task(other), name)


def test_the_bit_depth_is_that_of_the_whole_set(rng: np.random.Generator) -> None:
    for index, most in enumerate((700, 4000, 900)):
        image = rng.integers(0, most, (10, 12)).astype(np.uint16)
        image[0, 0] = most
        write_image(f"ir/{index}.png", image)
        write_image(f"vis/{index}.png", image)
    pairs = find_pairs("ir", "vis").pairs
    depths = find_depths(pairs, find_task("ir_vis"))
    assert depths.bits == (None, 12)
    assert [remark.split(":")[0] for remark in depths.remarks] == ["source b"]
    for pair in read_pairs(pairs, find_task("ir_vis")):
        assert [encoding.white for encoding in pair.encodings if encoding is not None] == [65535, 4095]
        assert np.abs(to_planes(pair.a, pair.b, find_task("ir_vis"), encodings=pair.encodings).b - pair.b / 4095).max() < 1e-6
    assert find_depths(pairs, find_task("multi_focus")).bits == (12, 12)
