"""The GPU architectures that there are kernels for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from refusion_edge.errors import UsageError

ARCHITECTURES = (80, 86, 87, 89, 90, 110, 120)
"""10 times the compute capabilities: A100, consumer Ampere, Orin, Ada, Hopper, Thor, consumer Blackwell."""


def choose_architecture(known: Iterable[int], here: int) -> int | None:
    """Choose the kernels for a device.

    Kernels for the very architecture, else, on compute capability 8.x, those for the highest one below it, which run
    there; kernels never run across major versions.

    Args:
        known: Architectures that there are kernels for.
        here: That of the device.

    Returns:
        One of them, or None if none runs there.
    """
    return max((one for one in known if one == here or (one // 10 == here // 10 == 8 and one < here)), default=None)


def parse_architectures(text: str) -> tuple[int, ...]:
    """Read ``sm_87,sm_110``.

    Raises:
        UsageError: A word is none of ``ARCHITECTURES``.
    """
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"sm_(\d{2,3})", word.strip(), re.ASCII)
        if match is None or int(match[1]) not in ARCHITECTURES:
            known = ", ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
            raise UsageError(f"expected architectures out of {known}, separated by commas, got '{word.strip()[:40]}'.")
        found.append(int(match[1]))
    return tuple(dict.fromkeys(found))
