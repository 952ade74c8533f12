"""The snippets of the page on Python run as they are, each on its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from tests.conftest import ROOT
from tests.stream.conftest import frames_of

SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
LEFT_BEHIND = {"fused.png", "raw", "marked.mkv", "fused.mkv", "again.mkv"}


@pytest.fixture
def documented_files() -> None:
    """The files that the page names."""
    street = sample_paths("ir_vis")[1]
    shutil.copy(street.a, "infrared.png")
    shutil.copy(street.b, "visible.png")
    size = "width=64&height=48"
    Path("site.yaml").write_text(f"ir: test://ir?{size}&live=0\nvis: test://vis?{size}&live=0\nnetwork: fast\n")


def test_there_are_as_many_snippets_as_a_page_needs() -> None:
    assert len(SNIPPETS) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("code", SNIPPETS, ids=[f"{number}" for number in range(len(SNIPPETS))])
def test_a_snippet_runs(code: str, documented_files: None) -> None:
    if "import torch" in code:
        pytest.importorskip("torch")
    exec(compile(code, "python.md", "exec"), {"__name__": "__main__"})
    named = {name for name in LEFT_BEHIND if name in code}
    assert all(Path(name).exists() for name in named)
    if "fused.png" in named:
        assert read_image("fused.png").shape == (288, 384, 3)
    for name in named:
        if name.endswith(".mkv"):
            assert frames_of(name) >= 4, name
