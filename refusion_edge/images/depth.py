"""The bit depth of a set of images whose files do not state it, from the largest value of all of them.

A single dark image says little: 10-bit values in a 12-bit camera's file are no 10-bit image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refusion_edge.errors import InputError
from refusion_edge.images.io import read_still
from refusion_edge.images.pairs import ImagePair, PairPaths, read_pair
from refusion_edge.images.ranges import significant_bits
from refusion_edge.images.still import CONTAINER, Encoding, Still
from refusion_edge.tasks import Task


@dataclass(frozen=True, slots=True)
class Depths:
    """Bit depths of the two sources of a set.

    Attributes:
        bits: Significant bits of source a and source b; None where a source needs none, or its files state it.
        files: Number of files that they were judged by.
    """

    bits: tuple[int | None, int | None] = (None, None)
    files: int = 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was guessed, one phrase for each source."""
        return tuple(
            f"source {name}: {bits} significant bits, judged by the largest value of {self.files} files"
            for name, bits in zip("ab", self.bits, strict=True)
            if bits is not None
        )

    def apply(self, pair: ImagePair) -> ImagePair:
        """Give a pair of the set these depths, where its files do not state them."""
        a, b = (_with_depth(encoding, bits, self.files) for encoding, bits in zip(pair.encodings, self.bits, strict=True))
        return replace(pair, encodings=(a, b))


NO_DEPTHS = Depths()
"""No depth is known beyond what each file states."""


def find_depths(pairs: Sequence[PairPaths], task: Task) -> Depths:
    """Find the bit depths of a set.

    Only files of more than 8 bits that do not state their depth are read, and of those only as many as it takes to find
    16 bits. Files that cannot be read are left to ``read_pair``.

    Args:
        pairs: The files of the set.
        task: Their task.
    """
    bits = [
        None if role.ranged else _largest_depth([pair.a if index == 0 else pair.b for pair in pairs])
        for index, role in enumerate(task.roles)
    ]
    if task.one_camera and None not in bits:
        bits = [max(depth for depth in bits if depth is not None)] * 2
    return Depths((bits[0], bits[1]), len(pairs))


def read_pairs(pairs: Sequence[PairPaths], task: Task) -> Iterator[ImagePair]:
    """Read the pairs of a set one after the other, with the bit depths of the set.

    Raises:
        InputError: A file cannot be read.
    """
    depths = find_depths(pairs, task)
    for paths in pairs:
        yield depths.apply(read_pair(paths))


def _largest_depth(files: Sequence[Path]) -> int | None:
    largest: int | None = None
    for file in files:
        try:
            still = read_still(file)
        except InputError:
            continue
        if not _is_open(still):
            continue
        largest = max(largest or 0, significant_bits(float(still.pixels.max())))
        if largest >= 8 * still.pixels.itemsize:
            return largest
    return largest


def _is_open(still: Still) -> bool:
    wide = still.pixels.dtype.kind in "iu" and still.pixels.itemsize > 1
    return wide and still.encoding.white_from == CONTAINER


def _with_depth(encoding: Encoding | None, bits: int | None, files: int) -> Encoding | None:
    if encoding is None or bits is None or encoding.white_from != CONTAINER or encoding.white <= 255:
        return encoding
    return replace(encoding, white=float((1 << bits) - 1), white_from=f"the largest value of {files} files")
