"""The measure of how well pairs are registered finds a known shift, whatever gray the two images have."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.registration import Registration, measure, read_registrations


@pytest.mark.parametrize("shift", [0, 3])
def test_a_shift_is_measured(shift: int) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(2).standard_normal((120, 160)), (0, 0), 2.0)
    vis = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
    # A band of gray levels is hot, all else cold: no function of brightness that rises or falls.
    ir = np.where(np.abs(vis.astype(int) - 128) < 30, 220, 40).astype(np.uint8)
    found = measure("pair", np.roll(ir, shift, axis=1), vis)
    assert found.offset_px == pytest.approx(shift, abs=0.3)
    assert found.confirmed is (shift == 0)
    assert found.gain >= 1


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "registrations.jsonl"
    path.write_text('{"name": "a", "offset_px": 1.4, "gain": 1.1}\n{"name": "b", "offset_px": 1.6, "gain": 1.0}\n')
    assert read_registrations(path) == {"a": Registration("a", 1.4, 1.1), "b": Registration("b", 1.6, 1.0)}
    assert [each.confirmed for each in read_registrations(path).values()] == [True, False]
