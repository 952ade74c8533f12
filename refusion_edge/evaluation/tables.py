"""The means of an evaluation as LaTeX and Markdown tables, with the best three values of each column marked.

As in most papers of the field, the best value is bold, the second underlined, the third in italics.
"""

from __future__ import annotations

from collections.abc import Mapping

from refusion_edge.evaluation.report import UNDEFINED, Report, format_value
from refusion_edge.metrics import Metric

_NONE = "--"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_MARKDOWN = {character: f"\\{character}" for character in "\\|*_`<>[]"}
_LATEX_MARKS = {1: r"\textbf{%s}", 2: r"\underline{%s}", 3: r"\textit{%s}"}
_MARKDOWN_MARKS = {1: "**%s**", 2: "<u>%s</u>", 3: "*%s*"}
_LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
_MARKED = "the best value of each column is bold, the second underlined, the third in italics"


def to_latex(report: Report) -> str:
    r"""Render one ``table`` for each convention; needs ``\usepackage{booktabs}``."""
    return "\n".join(_latex_table(report, convention) for convention in report.conventions)


def to_markdown(report: Report) -> str:
    """Render one table for each convention, with its caption above it."""
    return "\n".join(_markdown_table(report, convention) for convention in report.conventions)


def _latex_table(report: Report, convention: str) -> str:
    metrics = report.metrics_in(convention)
    heads = (f"{_escaped(metric.name, _LATEX)} {_LATEX_ARROWS[metric.direction]}" for metric in metrics)
    rows = [
        " & ".join([_escaped(method, _LATEX), *(_cell(report, method, metric, _LATEX_MARKS, "$^{*}$") for metric in metrics)])
        for method, _ in report.ranking()
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(_caption(report, convention), _LATEX)}}}",
            rf"\label{{tab:{report.task.name.replace('_', '-')}-{convention}}}",
            rf"\begin{{tabular}}{{l{'c' * len(metrics)}}}",
            r"\toprule",
            " & ".join(["Method", *heads]) + r" \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _markdown_table(report: Report, convention: str) -> str:
    metrics = report.metrics_in(convention)
    heads = (f"{_escaped(metric.name, _MARKDOWN)} {'↑' if metric.direction == 'higher' else '↓'}" for metric in metrics)
    rows = [
        [_escaped(method, _MARKDOWN), *(_cell(report, method, metric, _MARKDOWN_MARKS, r"\*") for metric in metrics)]
        for method, _ in report.ranking()
    ]
    lines = [["method", *heads], ["---", *("---:" for _ in metrics)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_escaped(_caption(report, convention), _MARKDOWN)}\n\n{table}\n"


def _caption(report: Report, convention: str) -> str:
    count, metrics = len(report.found.cases), report.metrics_in(convention)
    parts = [f"means over {count} image{'' if count == 1 else 's'}, {report.task.title}, convention {convention}"]
    if len(report.methods) > 1:
        parts.append(_MARKED)
    if any(report.summary(method, metric).undefined for method in report.methods for metric in metrics):
        parts.append(f"* {UNDEFINED} on some images, which are left out")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _cell(report: Report, method: str, metric: Metric, marks: Mapping[int, str], partial: str) -> str:
    summary, rank = report.summary(method, metric), report.ranks(metric)[method]
    if summary.mean is None:
        return _NONE
    text = format_value(summary.mean)
    if rank is not None and len(report.methods) > 1:
        text = marks.get(rank, "%s") % text
    return text + (partial if summary.undefined else "")


def _escaped(text: str, characters: Mapping[str, str]) -> str:
    return "".join(characters.get(character, character) for character in text)
