"""Which files are scored together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from refusion_edge.errors import InputError, UsageError
from refusion_edge.evaluation.cases import find_cases
from tests.evaluation.conftest import NAMES
from tests.raising import raises


def test_results_are_matched_by_stem_whatever_the_format(dataset: Path) -> None:
    found = find_cases("ir", "vis", {"good": "good", "noisy": "noisy"})
    assert [case.name for case in found.cases] == list(NAMES)
    assert found.methods == ("good", "noisy")
    assert found.cases[0].results["noisy"].luma == Path("noisy/01.jpg")
    assert found.left_out == ()


def test_results_may_carry_a_tail(dataset: Path) -> None:
    for name in NAMES:
        for method in ("good", "black"):
            Path(method, f"{name}.png").rename(Path(method, f"{name}_{method.upper()}.png"))
    found = find_cases("ir", "vis", {"good": "good", "black": "black/*_BLACK.png"})
    assert [case.results["black"].luma.name for case in found.cases] == [f"{name}_BLACK.png" for name in NAMES]


def test_several_tails_in_one_folder_have_to_be_told_apart(dataset: Path) -> None:
    Path("all").mkdir()
    for name in NAMES:
        for method in ("good", "black"):
            shutil.copy(Path(method, f"{name}.png"), Path("all", f"{name}_{method}.png"))
    with raises(InputError, "_black, _good"):
        find_cases("ir", "vis", {"all": "all"})
    assert len(find_cases("ir", "vis", {"good": "all/*_good.png"}).cases) == 5


@pytest.mark.parametrize(("folder", "name"), [("ir", "02.png"), ("vis", "03.png"), ("good", "04.png")])
def test_missing_counterparts_are_listed(dataset: Path, folder: str, name: str) -> None:
    Path(folder, name).unlink()
    with raises(InputError, f"/{Path(name).stem}."):
        find_cases("ir", "vis", {"good": "good"})
    found = find_cases("ir", "vis", {"good": "good"}, partial=True)
    assert len(found.cases) == 4
    assert any(path.stem == name.removesuffix(".png") for path in found.left_out)


def test_a_result_without_sources_is_listed(dataset: Path) -> None:
    shutil.copy("good/01.png", "good/99.png")
    with raises(InputError, "good/99.png"):
        find_cases("ir", "vis", {"good": "good"})
    assert find_cases("ir", "vis", {"good": "good"}, partial=True).left_out == (Path("good/99.png"),)


def test_three_files_are_one_case_whatever_their_names(dataset: Path) -> None:
    (case,) = find_cases("ir/01.png", "vis/01.png", {"x": "noisy/03.jpg"}).cases
    assert (case.name, case.results["x"].luma) == ("01", Path("noisy/03.jpg"))


def test_folders_with_nothing_in_common_are_refused(dataset: Path) -> None:
    Path("other").mkdir()
    shutil.copy("good/01.png", "other/a.png")
    shutil.copy("good/01.png", "other/b.png")
    with raises(InputError, "other"):
        find_cases("ir", "vis", {"other": "other"})
    with raises(UsageError, remedy=("--fused", "--bundle")):
        find_cases("ir", "vis", {})
