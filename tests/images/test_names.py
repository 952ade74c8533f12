"""Lists of names, by which data sets publish their splits, in the three verbs that read data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import InputError, UsageError
from refusion_edge.evaluation.cases import find_cases
from refusion_edge.images.io import write_image
from refusion_edge.images.names import read_names
from refusion_edge.images.pairs import find_pairs
from refusion_edge.tasks import find_task
from tests.conftest import one_sentence
from tests.raising import raises

RunCli = Callable[..., tuple[int, str, str]]

# Of each data set: task, the names of the files of both sources, and the name of the pair.
SETS = {
    "msrs": ("ir_vis", "train/ir/{}.png", "train/vi/{}.png"),
    "m3fd": ("ir_vis", "Ir/{}.png", "Vis/{}.png"),
    "llvip": ("ir_vis", "infrared/train/{}.jpg", "visible/train/{}.jpg"),
    "roadscene": ("ir_vis", "cropinfrared/{}.jpg", "crop_LR_visible/{}.jpg"),
    "tno": ("ir_vis", "ir/{}.png", "vi/{}.png"),
    "mefb": ("multi_exposure", "input/{0}/{0}_A.png", "input/{0}/{0}_B.png"),
    "lytro": ("multi_focus", "{}-A.jpg", "{}-B.jpg"),
    "harvard-pet": ("medical", "PET/{}.png", "MRI/{}.png"),
}
NAMES = ("scene-1", "scene-2", "scene-3")


def make_set(name: str, side: int = 40) -> str:
    rng = np.random.default_rng(2)
    task, *patterns = SETS[name]
    for pair in NAMES:
        for pattern in patterns:
            write_image(Path("set", pattern.format(pair)), rng.integers(0, 256, (side, side), np.uint8))
    return task


def write_list(*lines: str, name: str = "split.txt") -> str:
    Path(name).write_text("\n".join(lines) + "\n")
    return name


@pytest.mark.parametrize("layout", SETS)
def test_a_list_chooses_pairs_of_every_data_set(run_cli: RunCli, layout: str) -> None:
    task = make_set(layout)
    split = write_list(NAMES[0], NAMES[2])
    known = ("set", "set", "--layout", layout, "--task", task)
    words = ("--network", "fast") if task == "ir_vis" else ()
    assert run_cli("fuse", *known, *words, "--threads", 1, "--split", split, "-o", "fused")[0] == 0
    assert sorted(path.stem for path in Path("fused").iterdir()) == [NAMES[0], NAMES[2]]
    method = ("--fused", "ours=fused", "--metrics", "EN", "--no-trivial", "--jobs", 1)
    sources = ("--ir", "set", "--vis", "set", "--layout", layout, "--task", task)
    assert run_cli("eval", *sources, *method, "--split", split, "--json", "scores.json")[0] == 0
    scores = json.loads(Path("scores.json").read_text())
    assert scores["images"] == [NAMES[0], NAMES[2]]

    pytest.importorskip("torch", reason="training needs torch")
    from refusion_edge.train.collection import survey

    found = survey(Path("set"), find_task(task), 16, layout=layout, split=read_names(Path(split)))
    assert [entry.name for entry in found.entries] == [NAMES[0], NAMES[2]]


def test_a_list_is_read_as_people_write_it() -> None:
    Path("list.txt").write_bytes("\ufeffir/00001.PNG\r\n\r\n  set\\vis\\00002.jpg \r\nv1.2\r\nGru\u0308n.tif".encode())
    assert read_names(Path("list.txt")).names == ("00001", "00002", "v1.2", "Gr\u00fcn")


def test_names_of_files_count_as_names_of_their_pair() -> None:
    for name in ("1", "2", "10"):
        write_image(f"a/{name}_ir.png", np.eye(8, dtype=np.uint8))
        write_image(f"b/{name}_vis.png", np.eye(8, dtype=np.uint8))
    write_image("a/alone.png", np.eye(8, dtype=np.uint8))
    found = read_names(Path(write_list("10_vis.png", "1", "2_ir"))).select_pairs(find_pairs("a", "b"))
    assert [pair.name for pair in found.pairs] == ["1", "2", "10"]
    assert (found.only_a, found.only_b, found.ignored) == ((), (), ())


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ((), "split.txt"),
        (("", "  "), "split.txt"),
        (("1", "2", "1"), "1"),
        (("1.png", "ir/1.jpg"), "1"),
        (("1", "3", "4"), "3"),
        (("1", "1_ir"), "1"),
    ],
)
def test_a_bad_list_is_one_error(run_cli: RunCli, lines: tuple[str, ...], named: str) -> None:
    for name in ("1", "2"):
        write_image(f"ir/{name}_ir.png", np.eye(8, dtype=np.uint8))
        write_image(f"vis/{name}_vis.png", np.eye(8, dtype=np.uint8))
    with raises(InputError, named):
        read_names(Path(write_list(*lines))).select_pairs(find_pairs("ir", "vis"))
    verbs = (
        ("fuse", "ir", "vis", "-o", "fused"),
        ("eval", "--ir", "ir", "--vis", "vis", "--fused", "vis"),
        ("train", "--task", "ir_vis", "--data", "."),
    )
    for words in verbs:
        code, out, err = run_cli(*words, "--split", "split.txt")
        assert (code, out, one_sentence(err)) == (4, "", True), words
        assert named in err
    assert not Path("fused").exists()


def test_a_name_that_two_pairs_have_is_refused() -> None:
    items = (("x", "x_ir"), ("x_ir", "x_ir_1"))  # the name of a pair, and that of its file
    split = read_names(Path(write_list("x_ir")))
    with raises(InputError, "x_ir"):
        split.select(items, lambda names: names)
    assert read_names(Path(write_list("x", "x_ir_1"))).select(items, lambda names: names) == items


def test_what_is_no_list_is_refused(run_cli: RunCli) -> None:
    write_image("x.png", np.eye(8, dtype=np.uint8))
    for path in ("x.png", "absent.txt", "."):
        with raises(InputError, path):
            read_names(Path(path))
    code, _, err = run_cli("fuse", "x.png", "x.png", "-o", "y.png", "--split", "x.txt")
    assert (code, one_sentence(err)) == (4, True)
    code, _, err = run_cli("fuse", "x.png", "x.png", "-o", "y.png", "--split", write_list("x"))
    assert (code, one_sentence(err)) == (UsageError.exit_code, True)


def test_results_of_other_pairs_do_not_matter() -> None:
    make_set("tno")
    for name in NAMES:
        write_image(f"all/{name}_OURS.png", np.eye(8, dtype=np.uint8))
    write_image("two/scene-2.png", np.eye(8, dtype=np.uint8))
    write_image("two/scene-3.png", np.eye(8, dtype=np.uint8))
    split = read_names(Path(write_list("scene-2", "scene-3")))
    found = find_cases("set/ir", "set/vi", {"all": "all", "two": "two"}, split=split)
    assert [case.name for case in found.cases] == ["scene-2", "scene-3"]
    with raises(InputError, "scene-1"):
        find_cases("set/ir", "set/vi", {"two": "two"}, split=read_names(Path(write_list("scene-1"))))
    write_image("all/foreign.png", np.eye(8, dtype=np.uint8))
    with raises(InputError, "foreign"):
        find_cases("set/ir", "set/vi", {"all": "all"}, split=split)


def test_shards_divide_the_split(run_cli: RunCli) -> None:
    make_set("tno")
    words = ("eval", "--ir", "set/ir", "--vis", "set/vi", "--fused", "v=set/vi", "--metrics", "EN", "--no-trivial", "--jobs", 1)
    split = ("--split", write_list("scene-1", "scene-3"))
    for index in (0, 1):
        assert run_cli(*words, *split, "--shard", f"{index}/2", "--json", f"{index}.json")[0] == 0
    assert run_cli("eval", "--merge", "0.json", "1.json", "--json", "merged.json")[0] == 0
    assert run_cli(*words, *split, "--json", "whole.json")[0] == 0
    merged, whole = (json.loads(Path(name).read_text())["images"] for name in ("merged.json", "whole.json"))
    assert merged == whole
    # Another list is another evaluation.
    write_list("scene-1", "scene-2")
    assert run_cli(*words, *split, "--shard", "1/2", "--json", "1.json")[0] == 0
    assert run_cli("eval", "--merge", "0.json", "1.json")[0] == 4
