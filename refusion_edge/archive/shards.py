"""Shards of an archive, for array jobs on a cluster: each machine takes one, and together they cover every item once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from refusion_edge.errors import UsageError

Item = TypeVar("Item")

MOST_SHARDS = 1_000_000
"""More than any cluster has jobs."""
_PATTERN = re.compile(r"([0-9]{1,7})/([0-9]{1,7})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` shards; the first has the index 0.

    Attributes:
        index: Index of the shard.
        count: Number of shards.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_all(self) -> bool:
        """Whether it is the only shard."""
        return self.count == 1

    def bounds(self, total: int) -> tuple[int, int]:
        """Index of the first item, and of the one after the last, out of ``total`` items; shards differ by at most one item."""
        return self.index * total // self.count, (self.index + 1) * total // self.count

    def require_items(self, total: int) -> None:
        """Require an item for every shard.

        Raises:
            UsageError: There are more shards than items.
        """
        if self.count > total:
            raise UsageError(
                f"{total} images cannot be divided into {self.count} shards", "use fewer shards", expected=total, got=self.count
            )

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of the shard, which are consecutive; can be empty if there are more shards than items."""
        first, end = self.bounds(len(items))
        return items[first:end]


ALL = Shard(0, 1)
"""The only shard: everything."""


def parse_shard(text: str) -> Shard:
    """Read ``I/N``, such as ``3/16``; the first shard is ``0/16``.

    Raises:
        UsageError: It does not have this form, or there is no such shard.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= MOST_SHARDS or int(match[1]) >= int(match[2]):
        raise UsageError(
            f"there is no shard '{text}'", "write I/N, with I from 0 to N-1, such as 0/16 for the first of sixteen", got=text
        )
    return Shard(int(match[1]), int(match[2]))
