"""The profile of native: where a library lies, and the table."""

from __future__ import annotations

from pathlib import Path

from benchmarks.native_profile import loaded_at, table

MAPS = """\
55d0a000-55d0b000 r-xp 00000000 00:1f 1  /usr/bin/python
7f001000-7f002000 r--p 00000000 00:1f 2  /build/librefusion_edge.so.1.2.0
7f002000-7f00a000 r-xp 00001000 00:1f 2  /build/librefusion_edge.so.1.2.0
7f00a000-7f00b000 rw-p 00000000 00:00 0
"""


def test_a_library_lies_from_its_first_to_its_last_range() -> None:
    assert loaded_at(MAPS, Path("/build/librefusion_edge.so.1.2.0")) == (0x7F001000, 0x7F00A000)


def test_time_is_shared_by_samples_and_the_ideal_by_multiply_adds() -> None:
    rows = table({"GELU": 10, "1x1": 90}, {"1x1": 40.0}, pixel_ns=200.0, multiply_add_ns=2.0).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert cells == [["1x1", "40", "80", "180", "100"], ["GELU", "", "", "20", "20"], ["sum", "40", "80", "200", "120"]]
