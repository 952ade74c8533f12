"""Folders of pairs: what is used, what is left out and why, and defocus from sharp images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.images.io import write_image
from refusion_edge.images.names import read_names
from refusion_edge.tasks import find_task
from refusion_edge.train.augmentation import defocused_pair
from refusion_edge.train.collection import PairCollection, read_planes, split_held, survey
from refusion_edge.train.crops import crop_batch
from refusion_edge.train.session import Console, Request, divide, survey_for
from refusion_edge.train.settings import resolve
from tests.raising import raises

IR_VIS, MULTI_FOCUS = find_task("ir_vis"), find_task("multi_focus")


def test_what_cannot_be_used_is_counted_and_listed(folder_of_pairs: Callable[..., Path], picture: Callable[..., Array]) -> None:
    data = folder_of_pairs("data", count=3, side=40)
    write_image(data / "ir/alone.png", picture(40, 40))
    for name, sizes in (("small", (20, 20)), ("unequal", (40, 41))):
        for folder, side in zip(("ir", "vis"), sizes, strict=True):
            write_image(data / folder / f"{name}.png", picture(side, side))
    for folder in ("ir", "vis"):
        write_image(data / folder / "flat.png", np.full((40, 40), 7, np.uint8))
        (data / folder / "broken.png").write_bytes(b"\x89PNG nothing more")
    found = survey(data, IR_VIS, 32, exclude=["01"])
    assert [entry.name for entry in found.entries] == ["00", "02"]
    remarks = "\n".join(found.remarks)
    assert "without a counterpart: 1 (ir/alone.png)" in remarks
    assert "excluded by name: 1 (01)" in remarks
    assert "smaller than the crop of 32 pixels: 1 (small)" in remarks
    assert "sizes that do not fit: 1 (unequal)" in remarks
    assert "one value in every pixel: 1 (flat)" in remarks
    assert "unreadable" in remarks


@pytest.mark.parametrize("case", ["missing", "no folder", "too small"])
def test_folders_without_usable_pairs_are_refused(case: str, folder_of_pairs: Callable[..., Path]) -> None:
    data = Path("nowhere")
    if case == "no folder":
        data = folder_of_pairs("data", folders=("ir",))
    if case == "too small":
        data = folder_of_pairs("data")
    with raises(InputError, data):
        survey(data, IR_VIS, 64)


def test_other_folder_names_are_taken(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data", folders=("thermal", "colour"))
    assert len(survey(data, IR_VIS, 16, folder_a="thermal", folder_b="colour").entries) == 3


def test_a_file_that_turns_bad_is_reported_once_and_replaced(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data", count=2)
    said: list[str] = []
    collection = PairCollection(survey(data, IR_VIS, 16).entries, cache_bytes=0, report=said.append)
    (data / "ir/01.png").write_bytes(b"gone")
    for _ in range(3):
        assert np.array_equal(collection.planes(1)[0], collection.planes(0)[0])
    assert len(said) == 1
    assert "01.png" in said[0]
    crop_batch(collection, 0, batch=8, crop_px=16, seed=0)
    (data / "vis/00.png").unlink()
    with raises(InputError, "2 pairs"):
        collection.planes(0)


def test_planes_stay_in_memory_as_far_as_they_fit(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data", count=2, side=24)
    collection = PairCollection(survey(data, IR_VIS, 16).entries, cache_bytes=2 * 24 * 27)
    before = [collection.planes(which) for which in (0, 1)]
    for path in data.rglob("*.png"):
        path.unlink()
    assert collection.planes(0) is before[0]  # cached
    assert np.array_equal(collection.planes(1)[0], before[0][0])  # was not, and its file is gone


def test_pairs_of_a_small_set_are_drawn_more_often(folder_of_pairs: Callable[..., Path]) -> None:
    entries = survey(folder_of_pairs("data"), IR_VIS, 16).entries
    plain, collection = PairCollection(entries), PairCollection(entries, repeat={"01": 3, "0": 1})
    assert (len(plain), len(collection)) == (3, 5)
    drawn = [collection.planes(which)[0] for which in range(5)]
    for which, source in enumerate([0, 1, 1, 1, 2]):
        assert np.array_equal(drawn[which], plain.planes(source)[0])
    assert not np.array_equal(drawn[0], drawn[1])


def test_some_pairs_are_held_back_and_always_the_same(folder_of_pairs: Callable[..., Path]) -> None:
    entries = survey(folder_of_pairs("data", count=12), IR_VIS, 16).entries
    kept, held = split_held(entries, 0.25)
    assert [entry.name for entry in held] == ["03", "07", "11"]
    assert set(kept) | set(held) == set(entries)
    assert not set(kept) & set(held)
    assert [len(part) for part in split_held(entries[:2], 0.1)] == [1, 1]
    assert split_held(entries[:1], 0.1) == (entries[:1], entries[:1])


def test_ranks_draw_the_parts_of_one_joined_batch(folder_of_pairs: Callable[..., Path]) -> None:
    collection = PairCollection(survey(folder_of_pairs("data"), IR_VIS, 16).entries)
    joined, _ = crop_batch(collection, 3, batch=4, crop_px=16, seed=1)
    parts = [crop_batch(collection, 3, batch=2, crop_px=16, seed=1, start=start)[0] for start in (0, 2)]
    assert np.array_equal(joined, np.concatenate(parts))
    other, _ = crop_batch(collection, 3, batch=4, crop_px=16, seed=1, stream=1)
    assert not np.array_equal(joined, other)


def test_sharp_images_become_pairs(picture: Callable[..., Array]) -> None:
    for index in range(2):
        write_image(f"data/sharp/{index}.png", picture(80, 60))
    found = survey(Path("data"), MULTI_FOCUS, 16, sharp_scale=0.5)
    assert [entry.b for entry in found.entries] == [None, None]
    collection = PairCollection(found.entries, sharp_scale=0.5)
    assert collection.planes(0)[0].shape == (40, 30)
    a, b = crop_batch(collection, 0, batch=4, crop_px=16, seed=0)
    assert not np.array_equal(a, b)
    assert np.array_equal(a, crop_batch(collection, 0, batch=4, crop_px=16, seed=0)[0])


def test_defocus_is_complementary(rng: np.random.Generator) -> None:
    sharp = rng.integers(0, 256, (64, 72)).astype(np.uint8)
    near, far = defocused_pair(sharp, np.random.default_rng(5))
    error_near, error_far = (np.abs(plane.astype(float) - sharp) for plane in (near, far))
    assert np.mean(np.minimum(error_near, error_far) <= 1) > 0.7  # one of the two is in focus, but at the edge of the mask
    for error in (error_near, error_far):
        assert 0.25 < np.mean(error > 5) < 0.75  # and each is blurred on about a half


def test_training_sees_what_is_fused_in_every_encoding(picture: Callable[..., Array]) -> None:
    levels = picture(40, 56).astype(np.float64)
    levels = np.rint((levels - levels.min()) / np.ptp(levels) * 255).astype(np.uint8)
    encodings = {
        "0": levels,
        "1": (51_241 + levels.astype(np.uint16) * 4).astype(np.uint16),
        "2": (51_241 + levels.astype(np.uint16) // 2).astype(np.uint16),  # 128 counts
    }
    visible = picture(40, 56, 3)
    for name, image in encodings.items():
        write_image(f"data/ir/{name}.png", image)
        write_image(f"data/vis/{name}.png", visible)
    found = survey(Path("data"), IR_VIS, 16)
    assert [entry.name for entry in found.entries] == ["0", "1", "2"]
    planes = [read_planes(entry) for entry in found.entries]
    for a, b in planes:
        assert np.abs(a.astype(int) - levels).max() <= 2
        assert np.array_equal(b, planes[0][1])


def test_training_takes_the_other_source_where_one_has_no_value(picture: Callable[..., Array]) -> None:
    counts = (51_241 + picture(40, 56).astype(np.uint16) * 4).astype(np.uint16)
    counts[:9] = 0
    visible = picture(40, 56)
    write_image("data/ir/x.png", counts)
    write_image("data/vis/x.png", visible)
    (entry,) = survey(Path("data"), IR_VIS, 16).entries
    a, b = read_planes(entry)
    assert np.array_equal(a[:9], visible[:9])
    assert np.array_equal(b, visible)
    assert np.ptp(a[9:]) == 255


def test_the_folders_of_a_known_data_set_are_found(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data", folders=("infrared", "visible"))
    found = survey(data, IR_VIS, 16)
    assert len(found.entries) == 3
    assert any("llvip" in remark for remark in found.remarks)


def test_a_list_or_a_folder_is_held_back(folder_of_pairs: Callable[..., Path]) -> None:
    data, other = folder_of_pairs("data", count=6), folder_of_pairs("other", count=2)
    Path("train.txt").write_text("00\n01.png\n02\n03\n")
    Path("val.txt").write_text("04\n")
    Path("all.txt").write_text("".join(f"0{number}\n" for number in range(6)))
    settings = resolve("default", "ir_vis", device="cpu", assignments=("run.crop_px=16", "run.late_crop_px=16"))
    console = Console(lambda _: None, iter, lambda *_: None)

    def divided(split: str | None, val: str | Path) -> list[list[str]]:
        request = Request("ir_vis", data, Path("run"), split=split and read_names(Path(split)), val=Path(val))
        found = survey_for(request, settings, console)
        return [[entry.name for entry in part] for part in divide(request, settings, found, console)]

    assert divided("train.txt", "val.txt") == [["00", "01", "02", "03"], ["04"]]
    assert divided(None, "val.txt") == [["00", "01", "02", "03", "05"], ["04"]]
    assert divided("train.txt", other) == [["00", "01", "02", "03"], ["00", "01"]]
    same = Path("same")
    same.symlink_to(data)
    for split, val in (("train.txt", "train.txt"), (None, "all.txt"), (None, "absent.txt"), (None, data), ("train.txt", same)):
        with raises(InputError, str(val)):
            divided(split, val)
