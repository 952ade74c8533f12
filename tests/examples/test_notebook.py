"""The notebook runs from its first cell to its last, and leaves what it says."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "finetune.ipynb"


def cells() -> list[dict[str, Any]]:
    document = json.loads(NOTEBOOK.read_text())
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    found: list[dict[str, Any]] = document["cells"]
    return found


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a kernel does; returns the value of its last line, which a notebook shows."""
    tree = ast.parse(source, "cell")
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if isinstance(shown, ast.Expr):
        return eval(compile(ast.Expression(shown.value), "cell", "eval"), names)
    return None


def test_the_notebook_holds_no_results_of_a_run() -> None:
    assert len({cell["id"] for cell in cells()}) == len(cells())
    for cell in cells():
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("aiohttp")
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [run_cell("".join(cell["source"]), names) for cell in cells() if cell["cell_type"] == "code"]
    assert [image.size for image in shown if image is not None and hasattr(image, "size")] == [(768, 288)] * 3
    assert names["finetuned"]["EN"] > 5
    assert names["again"].shape == (288, 384, 3)
    assert not (names["again"] == names["fused"]).all()
    assert Path("finetuned/ir_vis.safetensors").is_file()
