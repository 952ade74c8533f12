"""Plots: what is drawn, where, and in which color."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np

from refusion_edge.report.plots import COLORS, bars, curves, distribution, scatter


def texts(svg: str) -> list[tuple[str, float, float]]:
    """Text, left or right end, height of every label."""
    root = ElementTree.fromstring(svg)
    return [(one.text or "", float(one.attrib["x"]), float(one.attrib["y"])) for one in root.iter() if one.tag.endswith("text")]


def test_parts_of_a_bar_add_up_and_keep_their_color() -> None:
    svg = bars({"one": {"b": 3.0, "c": 1.0}, "two": {"c": 2.0}}, ("a", "b", "c"))
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="18" fill="(#\w+)"><title>(\w)', svg)
    assert [(color, kind) for *_, color, kind in found] == [(COLORS[1], "b"), (COLORS[2], "c"), (COLORS[2], "c")]
    first, second, third = ((float(x), float(width)) for x, _, width, *_ in found)
    assert first[0] + first[1] == second[0]
    assert first[1] / third[1] == 1.5
    assert {"4", "2"} <= {text for text, *_ in texts(svg)}


def test_names_of_points_do_not_cover_one_another() -> None:
    points = {f"engine {index}": (10.0 + index % 2, 80.0 + index % 3) for index in range(9)}
    svg = scatter(points, unit="ms")
    labels = [label for label in texts(svg) if label[0].startswith("engine")]
    assert len(labels) == 9
    # All end to the left of their points, because all points are in the right half.
    assert svg.count('text-anchor="end">engine') == 9
    for (name, x, y), (_, other_x, other_y) in combinations(labels, 2):
        assert abs(y - other_y) >= 12.9 or abs(x - other_x) >= 6 * len(name)
    assert svg.count("<circle") == 9


def test_names_are_escaped() -> None:
    drawn = [
        bars({"a<b>": {"<i>": 1.0}}, ("<i>",)),
        scatter({"a<b>": (1.0, 2.0)}, unit="ms"),
        curves([0.0, 1.0], {"a<b>": np.array([1.0, 2.0])}, unit="px"),
        distribution({"a<b>": np.array([1.0, 2.0])}, {"a<b>": "<i>"}),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg)
        assert "<b>" not in svg


def test_nothing_gives_no_plot() -> None:
    assert bars({}, ()) == scatter({}, unit="ms") == ""
    assert curves([0.0], {"a": np.array([np.nan])}, unit="px") == ""
    assert distribution({"a": np.array([np.nan])}, {"a": ""}) == ""


def test_many_positions_share_a_few_labels() -> None:
    svg = curves([float(minute) for minute in range(600)], {"a": np.arange(600.0)}, unit="min")
    assert len([text for text, *_ in texts(svg) if text.endswith("min")]) <= 9
