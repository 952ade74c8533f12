"""How options are read."""

from __future__ import annotations

import argparse

import pytest

from refusion_edge.cli.options import size_bytes


def test_amounts_of_data_have_a_unit() -> None:
    assert [size_bytes(text) for text in ("10GB", "1.5 TB", "500MB", "2MiB")] == [10**10, 15 * 10**11, 5 * 10**8, 2 << 20]


@pytest.mark.parametrize("text", ["10", "10 kB", "0GB", "-1GB", "GB", "1e3GB", "10Gb"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size_bytes(text)
