"""Lists of names, by which data sets publish their splits: a text file with one name per line."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from refusion_edge.errors import InputError
from refusion_edge.files import read_file
from refusion_edge.images.io import READABLE_SUFFIXES
from refusion_edge.images.pairs import PairList, PairPaths, some_names

_MOST_BYTES = 16 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NameList:
    """The names of some pairs of a data set.

    Attributes:
        path: The file that lists them.
        names: The names, in Unicode's composed form, without folders and without suffixes of images.
    """

    path: Path
    names: tuple[str, ...]

    def select(self, items: Sequence[_T], names_of: Callable[[_T], Iterable[str]]) -> tuple[_T, ...]:
        """The items that are listed, in their own order.

        Args:
            items: Items to choose from.
            names_of: The names that an item may have in the list.

        Raises:
            InputError: A listed name is that of no item or of several, or two names are those of one.
        """
        known: dict[str, set[int]] = {}
        for index, item in enumerate(items):
            for name in names_of(item):
                known.setdefault(unicodedata.normalize("NFC", name), set()).add(index)
        absent = [name for name in self.names if name not in known]
        if absent:
            raise InputError(
                f"{self.path} lists {len(absent)} of {len(self.names)} names that no pair has ({some_names(absent)})",
                "check that the list and the folders belong together",
            )
        several = [name for name in self.names if len(known[name]) > 1]
        if several:
            raise InputError(
                f"{self.path} lists names that more than one pair has ({some_names(several)})",
                "rename the files so that each name is that of one pair",
            )
        found = Counter(index for name in self.names for index in known[name])
        twice = [name for name in self.names if any(found[index] > 1 for index in known[name])]
        if twice:
            raise _doubled(self.path, twice)
        return tuple(item for index, item in enumerate(items) if index in found)

    def select_pairs(self, found: PairList) -> PairList:
        """The pairs that are listed, by their names or by those of their files; all other files do not matter.

        Raises:
            InputError: See ``select``.
        """
        return replace(found, pairs=self.select(found.pairs, names_of_pair), only_a=(), only_b=(), ignored=())


def names_of_pair(pair: PairPaths) -> tuple[str, str, str]:
    """The names of a pair: its own, and those of its files."""
    return pair.name, pair.a.stem, pair.b.stem


def read_names(path: Path) -> NameList:
    """Read a list of names, one per line; empty lines are skipped.

    A name may have a suffix and folders, as in ``ir/00001.png``: only ``00001`` counts.

    Raises:
        InputError: The file cannot be read, is not text in UTF-8, is empty, or has a name twice.
    """
    data = read_file(path, kind="list of names", most_bytes=_MOST_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{path} is not text in UTF-8, as a list of names is", "give a text file with one name per line")
    names = tuple(_name(line.strip()) for line in text.splitlines() if line.strip())
    if not names:
        raise InputError(f"the list of names {path} is empty", "write one name per line")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _doubled(path, twice)
    return NameList(path, names)


def _name(line: str) -> str:
    path = PurePosixPath(line.replace("\\", "/"))
    return unicodedata.normalize("NFC", path.stem if path.suffix.lower() in READABLE_SUFFIXES else path.name)


def _doubled(path: Path, names: Sequence[str]) -> InputError:
    return InputError(f"{path} lists some pairs more than once ({some_names(names)})", "list each pair once")
