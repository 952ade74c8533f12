"""The system diagram: the committed file is what the script draws, and every text fits its box."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from examples.system_diagram import BOX_WIDTH, BOXES, DETAIL_PX, HEIGHT, TITLE_PX, WIDTH, Box, draw
from tests.conftest import ROOT


def test_the_committed_diagram_is_the_drawn_one() -> None:
    assert (ROOT / "docs" / "images" / "system.svg").read_text(encoding="utf-8") == draw()
    assert ElementTree.fromstring(draw()).tag.endswith("svg")


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.title)
def test_text_fits_its_box_and_the_box_the_page(box: Box) -> None:
    assert box.text_width <= BOX_WIDTH
    assert TITLE_PX + (DETAIL_PX + 4) * len(box.details) <= box.height
    assert 0 <= box.x <= WIDTH - BOX_WIDTH
    assert 0 <= box.y <= HEIGHT - box.height


def test_no_two_boxes_overlap() -> None:
    for first in BOXES:
        for second in BOXES:
            if first is not second:
                apart = abs(first.x - second.x) >= BOX_WIDTH
                assert apart or first.y + first.height <= second.y or second.y + second.height <= first.y
