"""The cost model: lines through made-up measurements, and what is printed of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import BEGIN, END, Device, describe, fit, put, straight_line
from refusion_edge.bench.history import SweepLog
from refusion_edge.bench.limits import Limits, roofline
from refusion_edge.bench.measurement import Row, WindowSummary
from refusion_edge.bench.sensors import MachineState, MemoryUse
from refusion_edge.bench.statistics import spread
from refusion_edge.bench.subjects import Identity
from refusion_edge.errors import InputError
from refusion_edge.network.cost import refusion_work
from tests.conftest import ROOT
from tests.raising import raises

CONFIGURATION = {"machine": {"processor": "P", "cores": 2}, "versions": {"numpy": "2"}}


def row_at(height: int, width: int, *, name: str = "ir_vis") -> Row:
    """A row of 3 ms and 250 ms for a megapixel, 40 MiB and 800, 10 mJ and 2000."""
    megapixels = height * width / 1e6
    time_ms = 3 + 250 * megapixels
    stages = {stage: spread(np.full(12, time_ms)) for stage in ("infer", "end_to_end")}
    near = roofline(refusion_work("fp32"), height * width, time_ms, Limits(1000.0, 50.0, 2))
    return Row(
        Identity(name, "ir_vis", "fp32", (height, width), "onnxruntime", 1), {}, None, True, 1, 1.0,
        (WindowSummary(0.0, 4, time_ms, time_ms),) * 3, (), stages, (time_ms,) * 101, 1e3 / time_ms, 1.0,
        MemoryUse(500.0, 40 + 800 * megapixels, None), 10 + 2000 * megapixels, "RAPL", MachineState(), MachineState(), near,
    )  # fmt: skip


SIZES = ((120, 160), (480, 640), (240, 320), (721, 961))


def write(rows: list[Row]) -> Path:
    with SweepLog(Path("sweep.jsonl"), CONFIGURATION) as log:
        for row in rows:
            log.add(row)
    return Path("sweep.jsonl")


def test_a_line_is_found_again() -> None:
    (model,) = fit([row_at(*size) for size in SIZES])
    for line, fixed, slope in ((model.time_ms, 3, 250), (model.memory_mib, 40, 800), (model.energy_mj, 10, 2000)):
        assert line is not None
        assert (line.fixed, line.per_megapixel) == (pytest.approx(fixed), pytest.approx(slope))
        assert line.residual < 1e-9
    assert model.sizes == ("120x160", "240x320", "480x640", "721x961")
    assert model.time_ms.at(2e6) == pytest.approx(503)


def test_every_size_has_the_same_say() -> None:
    line = straight_line(np.array([1e4, 1e5, 1e6]), [1.0, 10.0, 200.0])
    assert line.residual == pytest.approx(
        np.max(np.abs(np.array([line.at(1e4), line.at(1e5), line.at(1e6)]) / [1, 10, 200] - 1))
    )
    # An unweighted line through the largest would miss the smallest by more than its whole value.
    assert line.residual < 0.6


def test_what_cannot_be_fitted_is_left_out_or_refused() -> None:
    unstable = replace(row_at(480, 640, name="b"), stable=False, stages=None)
    rows = [row_at(*size) for size in SIZES] + [row_at(120, 160, name="b"), row_at(240, 320, name="b"), unstable]
    assert len(fit(rows)) == 1
    no_energy = [replace(row_at(*size), energy_mj=None) for size in SIZES]
    assert fit(no_energy)[0].energy_mj is None
    with raises(InputError, "3 stable sizes"):
        describe([write(rows[4:])], 30)


def test_tables_hold_formula_consequence_and_model() -> None:
    text = describe([write([row_at(*size) for size in SIZES])], 10, [Device("board", Limits(100.0, 5.0, 0))])
    assert "| 3 + 250 per MP | 0.0% | 40 + 800 per MP | 0.0% | 10 + 2000 per MP |" in text
    # 480x640 is 79.8 ms: 12.5 pairs in a second, one camera at 10 fps; 1080x1920 lies outside the measured sizes.
    assert "12.5 / 1 / 22.2 h" in text  # for a million pairs
    assert "*1.92 / 0 / 145 h*" in text
    assert "**Model, not measured: board**" in text
    assert text.startswith("P, 2 cores; numpy 2.")


def test_the_page_has_a_place_for_it() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    once = put(page, "NEW\n")
    assert "NEW" in once
    assert put(once, "NEW\n") == once
    assert put(once, "OTHER\n").count("NEW") == 0
    with raises(InputError, BEGIN, END):
        put("no markers", "x")
