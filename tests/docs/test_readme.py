"""The README: its commands work as they stand there, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from refusion_edge.cli import VERBS
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.samples import sample_paths
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def pictures() -> None:
    """The files that the README speaks of."""
    street = sample_paths("ir_vis")[1]
    write_image("infrared.png", read_image(street.a))
    write_image("visible.png", read_image(street.b))


def test_python_example_runs(pictures: None) -> None:
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
