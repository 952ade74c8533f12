"""The pages: the README's example runs, and links, files and modules that a page names exist."""

from __future__ import annotations

import contextlib
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from refusion_edge.cli import VERBS
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.samples import sample_paths
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
CARDS = sorted((ROOT / "refusion_edge" / "network" / "weights").glob("*.md"))
# Files and modules of the repository, as the pages name them; * stands for part of a name.
FILE = re.compile(
    r"(?<![\w./])((?:refusion_edge|kernels|export|train|calibration|tests|benchmarks|examples|docs)/[\w./*-]*[\w*/])"
)
# The headers of the C library are no modules.
MODULE = re.compile(r"(?<![\w./])((?!refusion_edge\.hp{0,2}\b)(?:refusion_edge|benchmarks|examples)(?:\.\w+)+)")


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parent, _, last = name.rpartition(".")
    with contextlib.suppress(ModuleNotFoundError):  # a parent that is no package
        if find_spec(name) is not None:
            return True
    with contextlib.suppress(ModuleNotFoundError):
        return hasattr(importlib.import_module(parent), last)
    return False


def anchors(page: Path) -> set[str]:
    """What a link may name after ``#``: headings in lower case, without punctuation, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example_images() -> None:
    """The files that the README names."""
    street = sample_paths("ir_vis")[1]
    write_image("infrared.png", read_image(street.a))
    write_image("visible.png", read_image(street.b))


def test_python_example_runs(example_images: None) -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    exec(compile(code, "README.md", "exec"), {})
    assert read_image("fused.png").shape == (288, 384, 3)


def test_every_verb_is_listed() -> None:
    for verb in VERBS:
        assert f"| `refusion-edge {verb}" in README, verb


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"^make ([a-z]+)", page.read_text(), re.MULTILINE)) <= targets, page


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in [*DOCS, *CARDS]:
        assert page.name == "README.md" or f"/{page.name})" in index or f"({page.name})" in index, page


# The changelog names modules that moved.
@pytest.mark.parametrize("page", [page for page in [*PAGES, *CARDS] if page.name != "CHANGELOG.md"], ids=label)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for name in FILE.findall(text):
        assert "FORM-PRECISION" in name or any(ROOT.glob(name.rstrip("/"))), name
    for name in MODULE.findall(text):
        assert resolves(name), name


def test_the_check_of_names_bites() -> None:
    assert resolves("refusion_edge.calibration.rig.tracking.OnlineRefinement")
    assert resolves("benchmarks.metrics")
    assert not resolves("refusion_edge.latency.windows")
    assert not resolves("refusion_edge.metrics.absent")
    assert FILE.findall("`train/settings.py`, a/train/x and tests/cuda.") == ["train/settings.py", "tests/cuda"]


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not heading or heading in anchors(path), f"{target}#{heading}"
