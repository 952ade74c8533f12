"""Tracing anew gives the templates that ship, so that a build without torch is a build with torch."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("torch", "onnxscript", "onnxsim"):
    pytest.importorskip(package, reason="tracing needs the extra 'export'")

from refusion_edge.arrays import State
from refusion_edge.backends.eager import EagerBackend
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.errors import GateError
from refusion_edge.export.graph.trace import export_onnx, trace
from refusion_edge.network.checkpoint import Checkpoint
from refusion_edge.network.forms import REFERENCE, GraphPrecision
from refusion_edge.network.graph import fill, read_template
from tests.conftest import TEMPLATES, TOLERANCE, files_below
from tests.raising import raises


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's exporter warns about its own internals
@pytest.mark.parametrize(("form", "precision"), TEMPLATES)
def test_shipped_template_equals_a_new_trace(
    random_state: State, rng: np.random.Generator, form: str, precision: GraphPrecision
) -> None:
    shipped, traced = read_template(form, precision), trace(form, precision)
    assert [node.op_type for node in shipped.graph.node] == [node.op_type for node in traced.graph.node]
    a, b = (rng.random((1, 1, 35, 46), np.float32) for _ in range(2))
    with (
        OrtBackend(fill(shipped, random_state).SerializeToString(), threads=1) as first,
        OrtBackend(fill(traced, random_state).SerializeToString(), threads=1) as second,
    ):
        assert np.array_equal(first.fuse(a, b), second.fuse(a, b))


@pytest.mark.parametrize(("form", "precision"), TEMPLATES)
@pytest.mark.parametrize("size_hw", [(8, 8), (9, 31), (64, 40)])
def test_graph_equals_the_network(random_state: State, form: str, precision: GraphPrecision, size_hw: tuple[int, int]) -> None:
    draw = np.random.default_rng(sum(size_hw))
    a, b = (draw.random((1, 1, *size_hw), np.float32) for _ in range(2))
    with (
        OrtBackend(fill(read_template(form, precision), random_state).SerializeToString()) as graph,
        EagerBackend(random_state) as eager,
    ):
        difference = np.abs(graph.fuse(a, b) - eager.fuse(a, b))
    # Random weights have no smooth output; half precision is evaluated by its mean here, and on images in the gate.
    assert (difference.max() if precision == "fp32" else difference.mean()) <= TOLERANCE[precision]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's exporter warns about its own internals
def test_export_refuses_a_graph_that_differs(random_state: State, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Shift the eager output, as a wrong graph would be shifted against it: nothing may be written."""
    honest = EagerBackend.fuse
    monkeypatch.setattr(EagerBackend, "fuse", lambda self, a, b: honest(self, a, b) + np.float32(0.01))
    with raises(GateError, "fp32", "torch", remedy="onnxsim"):
        export_onnx(Checkpoint("medical", random_state), tmp_path / "out" / "x.onnx", REFERENCE, "fp32", (16, 16))
    assert files_below(tmp_path / "work") == []
    assert not (tmp_path / "out").exists()
