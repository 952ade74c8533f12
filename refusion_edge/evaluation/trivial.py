"""Two rules without any parameters, max(a, b) and the average, as rows beside every method.

They put the numbers of a table into proportion: on most metrics of most sets, the plain maximum is ahead of published weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Float32Array
from refusion_edge.fuser import Fuser
from refusion_edge.tasks import Task

Rule = Callable[[Float32Array, Float32Array], Float32Array]


def _average(a: Float32Array, b: Float32Array) -> Float32Array:
    return (a + b) / np.float32(2)


TRIVIAL: dict[str, Rule] = {"max(a, b)": np.maximum, "average": _average}
"""The rules by the name of their row: two luma planes in [0, 1] to one."""


class TrivialBackend:
    """A rule in place of a network. Implements ``Backend``.

    Args:
        name: Name of the rule in ``TRIVIAL``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is a new array."""
        return TRIVIAL[self.name](a, b)


def trivial_fuser(name: str, task: Task) -> Fuser:
    """A fuser of a rule, with the same steps before and after it as for a network, the stretch included."""
    return Fuser(TrivialBackend(name), task)
