"""The file for citations is one, and of this version."""

from __future__ import annotations

import yaml

import refusion_edge
from tests.conftest import ROOT


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # What the format requires.
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["title"], str(citation["version"])) == ("refusion-edge", refusion_edge.__version__)
    (paper,) = citation["references"]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text().split())
