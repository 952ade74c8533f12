"""The stored vectors: made with the weights of the package, by the script in the repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.accuracy.vectors import FILE, read_vectors
from refusion_edge.errors import InputError
from tests.raising import raises


def test_the_script_makes_the_stored_vectors() -> None:
    pytest.importorskip("torch", reason="the vectors are the network's in float64, which needs the extra 'train'")
    from tests.oracles.make_golden import make_vectors

    made, stored = make_vectors(), read_vectors()
    assert np.array_equal(made.a, stored.a)
    assert np.array_equal(made.b, stored.b)
    assert np.abs(made.fused - stored.fused).max() < 1e-7
    assert made.weights_sha256 == stored.weights_sha256


def test_they_are_small_odd_and_no_plain_image() -> None:
    vectors = read_vectors()
    assert vectors.size_hw == (45, 63)
    assert vectors.fused.dtype == np.float32
    assert np.ptp(vectors.fused) > 0.5
    for plane in vectors.planes():
        assert plane.shape == (1, 1, 45, 63)
        assert plane.dtype == np.float32
        assert 0 <= plane.min() < plane.max() <= 1


def test_vectors_that_are_missing_damaged_or_for_other_weights_are_refused(tmp_path: Path) -> None:
    cases = {"missing": None, "empty": b"", "junk": b"PK\x03\x04junk", "text": b"no vectors"}
    for name, data in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        if data is not None:
            (folder / FILE).write_bytes(data)
        with raises(InputError, FILE):
            read_vectors(folder)
    replace(read_vectors(), weights_sha256="00" * 32).write(tmp_path)
    with raises(InputError, "ir_vis"):
        read_vectors(tmp_path)
