"""Peers compute the same thing, and the table says what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the official sequence needs torch")
pytest.importorskip("onnxscript", reason="its export needs the extra 'export'")

from benchmarks import peers


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's exporter warns about its own internals
def test_every_peer_computes_the_same() -> None:
    setting = peers.Setting((16, 24), 1, Path.cwd())
    peers.export_official(setting)
    names = peers.peers(with_compile=False)
    assert {"official", "export-onnxruntime", "onnxruntime", "eager", "fast-onnxruntime"} <= set(names)
    peers.prepare_backends(names, setting)
    a, b = peers.planes(setting.size_hw)
    outputs = {}
    for name in names:
        with peers.open_peer(name, setting) as fuse:
            outputs[name] = np.array(fuse(a, b), np.float64)
        assert peers.describe(name)
    fast = peers.fast_reference(a, b)
    for name, output in outputs.items():
        expected = fast if name.startswith("fast-") else outputs["official"]
        assert np.abs(output - expected).max() < peers.MOST_ERROR, name


def row(name: str, beside: tuple[float, float | None, float | None], memory: float | None) -> dict[str, Any]:
    times = {"count": 12, "mean_ms": 5.0, "median_ms": 12.4, "percentiles_ms": {}, "max_ms": 9.0}
    value, low, high = beside
    ratio = {"value": value, "low": low, "high": high, "pairs": 12 if low else 5}
    return {
        "peer": name, "what": peers.describe(name), "wall": times, "cpu": {**times, "median_ms": 11.6},
        "wall_beside_ours": ratio, "cpu_beside_ours": ratio, "added_mib": memory, "max_difference": 0.0,
    }  # fmt: skip


def test_the_table_holds_wins_and_losses_and_their_conditions() -> None:
    document = {
        "schema": peers.SCHEMA, "started": "2026-11-22T10:00:00+00:00", "machine": {"processor": "P", "cores": 4},
        "versions": {"torch": "2"}, "size_hw": [240, 320], "threads": 1, "rounds": 12, "loaded": True,
        "load_before": {"average": 7.5}, "ours": peers.OURS,
        "peers": [
            row("official", (3.02, 2.9, 3.2), 61.4), row("export-openvino", (0.5, 0.4, 0.8), None),
            row("eager", (1.0, 0.9, 1.1), 3.0), row("native", (1.5, None, None), 3.0), row(peers.OURS, (1.0, 1.0, 1.0), 36.0),
        ],
    }  # fmt: skip
    text = peers.table(document)
    assert text.startswith("240x320, fp32, 1 thread, P (4 cores), 2026-11-22, 12 interleaved rounds; torch 2.")
    assert "loaded machine (load average 7.5)" in text
    assert "| official operator sequence, PyTorch | 12 | 12 | 3.02x (2.90 to 3.20) | 61 |" in text
    assert "OpenVINO | 12 | 12 | 0.50x (0.40 to 0.80) | - |" in text
    assert "cannot be told apart (0.90 to 1.10)" in text
    assert "1.50x (5 rounds are too few for an interval)" in text
    assert "(`onnxruntime`)** | 12 | 12 | - | 36 |" in text
    assert "loaded" not in peers.table({**document, "loaded": False})
