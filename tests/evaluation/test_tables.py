"""Tables for papers: the best three marked, names escaped, and a warning where there are few images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.evaluation.cases import Case, CaseList
from refusion_edge.evaluation.report import Report
from refusion_edge.evaluation.tables import to_latex, to_markdown
from refusion_edge.metrics import find_metric
from refusion_edge.tasks import find_task

Cli = Callable[..., tuple[int, str, str]]
METHODS = ("plain", "a_b & c", "third", "last|one")
# Means in EN (higher is better): 4, 3, 2, 1; in MSE (lower is better): 4, 3, 2, 1.
MEANS = np.array([4.0, 3.0, 2.0, 1.0])


def report(images: int = 12, methods: int = 4) -> Report:
    metrics = (find_metric("EN"), find_metric("MSE"))
    cases = tuple(Case(f"{number}", Path(), Path(), {}) for number in range(images))
    spread = np.linspace(-0.5, 0.5, images)
    values = np.stack([np.stack([mean + spread, mean + spread], axis=1) for mean in MEANS[:methods]])
    return Report(find_task("ir_vis"), CaseList(METHODS[:methods], cases, ()), metrics, values)


def rows_of(markdown: str) -> dict[str, list[str]]:
    rows = [re.split(r" (?<!\\)\| ", line.strip("| \n")) for line in markdown.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_markdown_marks_the_best_three_of_each_column() -> None:
    rows = rows_of(to_markdown(report()))
    assert rows["method"] == ["EN ↑", "MSE ↓"]
    assert rows["plain"] == ["**4.000**", "4.000"]
    assert rows["a\\_b & c"] == ["<u>3.000</u>", "*3.000*"]
    assert rows["third"] == ["*2.000*", "<u>2.000</u>"]
    assert rows["last\\|one"] == ["1.000", "**1.000**"]


def test_latex_marks_the_best_three_and_escapes() -> None:
    text = to_latex(report())
    assert r"a\_b \& c & \underline{3.000} & \textit{3.000} \\" in text
    assert r"plain & \textbf{4.000} & 4.000 \\" in text
    assert r"Method & EN $\uparrow$ & MSE $\downarrow$ \\" in text
    assert "Means over 12 images" in text
    assert text.count("{") == text.count("}")
    for name in ("table", "tabular"):
        assert (text.count(rf"\begin{{{name}}}"), text.count(rf"\end{{{name}}}")) == (1, 1)
    # A row has as many cells as the table has columns.
    assert r"\begin{tabular}{lcc}" in text
    assert all(len(re.findall(r"(?<!\\)&", row)) == 2 for row in text.splitlines() if row.endswith(r"\\"))


def test_a_single_method_has_no_best_and_undefined_values_are_said() -> None:
    single = report(methods=1)
    assert "**" not in to_markdown(single)
    assert single.caution == ""
    some = report()
    some.values[1, 0, 0] = np.nan
    some.values[3, :, 1] = np.nan
    rows = rows_of(to_markdown(some))
    assert rows["a\\_b & c"][0].endswith(r"\*")
    assert rows["last\\|one"][1] == "--"
    assert "undefined on some images" in to_markdown(some)
    assert "$^{*}$" in to_latex(some)


@pytest.mark.parametrize(("images", "warned"), [(1, True), (9, True), (10, False), (25, False)])
def test_few_images_are_warned_of(images: int, warned: bool) -> None:
    caution = report(images).caution
    assert (str(images) in caution, bool(caution)) == (warned, warned)
    assert report(images).to_document()["caution"] == (caution or None)


def test_the_command_writes_both_and_warns(dataset: Path, run_cli: Cli) -> None:
    words = (
        "--ir",
        "ir",
        "--vis",
        "vis",
        "--jobs",
        1,
        "--no-trivial",
        "--fused",
        "good",
        "--fused",
        "noisy",
        "--metrics",
        "CC,MSE",
    )
    code, out, err = run_cli("eval", *words, "--latex", "t.tex", "--markdown", "t.md", "--json", "r.json")
    assert code == 0
    assert "wrote r.json, t.tex, t.md" in out
    assert "only 5 images" in err
    rows = rows_of(Path("t.md").read_text())
    summary = {(row["method"], row["metric"]): row for row in json.loads(Path("r.json").read_text())["summary"]}
    for method in ("good", "noisy"):
        for column, metric in enumerate(("CC", "MSE")):
            cell = rows[method][column]
            assert float(re.sub(r"[*<>/u]", "", cell)) == pytest.approx(summary[method, metric]["mean"], rel=1e-3)
            assert ("**" in cell) == (summary[method, metric]["rank"] == 1)
    assert r"\textbf{" in Path("t.tex").read_text()


def test_a_data_set_is_named_once_and_its_sources_found(dataset: Path, run_cli: Cli) -> None:
    words = ("--jobs", 1, "--no-trivial", "--fused", "good", "--metrics", "CC")
    code, out, err = run_cli("eval", "--ir", ".", "--vis", ".", "--layout", "m3fd", *words)
    assert (code, "layout m3fd" in err) == (0, True), err
    assert out.splitlines()[:-1] == run_cli("eval", "--ir", "ir", "--vis", "vis", *words)[1].splitlines()[:-1]
    code, _, err = run_cli("eval", "--ir", ".", "--vis", ".", "--layout", "lytro", *words)
    assert (code, "multi_focus" in err) == (2, True)
