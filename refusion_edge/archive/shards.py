"""Shares of an archive, for array jobs of a cluster: every machine takes its own, and together they take everything once."""

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
    """One of ``count`` shares; the first has the index 0.

    Attributes:
        index: Which share.
        count: How many there are.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_all(self) -> bool:
        """Whether it is the only share."""
        return self.count == 1

    def bounds(self, total: int) -> tuple[int, int]:
        """First item of the share, and the one after its last, of so many items; shares differ by at most one item."""
        return self.index * total // self.count, (self.index + 1) * total // self.count

    def require_items(self, total: int) -> None:
        """Require an item for every share.

        Raises:
            UsageError: There are more shares than items.
        """
        if self.count > total:
            raise UsageError(
                f"{total} images cannot be shared by {self.count}", "use fewer shards", expected=total, got=self.count
            )

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of the share, a run of neighbors; empty if there are more shares than items."""
        first, end = self.bounds(len(items))
        return items[first:end]


ALL = Shard(0, 1)
"""The only share: everything."""


def parse_shard(text: str) -> Shard:
    """Read ``I/N``, such as ``3/16``; the first share is ``0/16``.

    Raises:
        UsageError: It is not written like this, or there is no such share.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= MOST_SHARDS or int(match[1]) >= int(match[2]):
        raise UsageError(
            f"there is no shard '{text}'", "write I/N, with I from 0 to N-1, such as 0/16 for the first of sixteen", got=text
        )
    return Shard(int(match[1]), int(match[2]))
