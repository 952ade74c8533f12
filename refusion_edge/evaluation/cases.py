"""Matching files: the two sources of a case and the result of each method."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refusion_edge.errors import InputError, UsageError
from refusion_edge.images.names import NameList
from refusion_edge.images.pairs import PairPaths, find_images, find_pairs

_LISTED = 20


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a method for one pair.

    Attributes:
        luma: File read by conventions on gray images.
        color: File read by conventions on color planes; the same if a method has only one.
    """

    luma: Path
    color: Path


@dataclass(frozen=True, slots=True)
class Case:
    """One pair of sources and its results.

    Attributes:
        name: Stem of the sources.
        a: File of source a.
        b: File of source b.
        results: Method to its result.
    """

    name: str
    a: Path
    b: Path
    results: Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class CaseList:
    """The cases common to sources and results.

    Attributes:
        methods: Names of the methods, in the order given.
        cases: Cases, ordered by name.
        left_out: Files without a counterpart.
    """

    methods: tuple[str, ...]
    cases: tuple[Case, ...]
    left_out: tuple[Path, ...]


def find_sources(
    a: str, b: str, *, partial: bool = False, split: NameList | None = None
) -> tuple[tuple[PairPaths, ...], tuple[Path, ...]]:
    """Match the files of the two sources.

    Args:
        a: Folder or glob pattern of source a.
        b: The same for source b.
        partial: Whether to ignore files without a counterpart.
        split: The pairs to take; None for all.

    Returns:
        The pairs, and the files without a counterpart; with a split, its pairs only.

    Raises:
        InputError: The folders hold nothing in common, or a counterpart is missing and ``partial`` is not set.
    """
    found = find_pairs(a, b)
    if split is not None:
        found = split.select_pairs(found)
    left_out = (*found.only_a, *found.only_b)
    _require_all(left_out, partial)
    return found.pairs, left_out


def find_cases(
    a: str,
    b: str,
    results: Mapping[str, str],
    *,
    in_color: Mapping[str, str] | None = None,
    partial: bool = False,
    share: Collection[str] | None = None,
    split: NameList | None = None,
) -> CaseList:
    """Match sources and the results of several methods by stem.

    The results of a method may share a suffix after the stem of their sources, as in ``carLight_GFF.jpg``.

    Args:
        a: Folder or glob pattern of source a.
        b: The same for source b.
        results: Method to the folder or glob pattern of its results.
        in_color: The same for methods whose results also exist in color; with the same stems.
        partial: Whether to ignore files without a counterpart.
        share: Names of the pairs to take; None for all.
        split: The pairs that matter; results of the others are ignored. None for all.

    Raises:
        InputError: Nothing matches, or a counterpart is missing and ``partial`` is not set.
        UsageError: No method is given.
    """
    if not results:
        raise UsageError("there are no fused images to score", "add --fused DIR or --bundle DIR")
    pairs, left_out = find_sources(a, b, partial=partial, split=split)
    # Results are matched to all pairs, so that those outside the split are known, too.
    names = [pair.name for pair in (pairs if split is None else find_pairs(a, b).pairs)]
    luma = {method: _match(names, source) for method, source in results.items()}
    color = luma | {method: _match(names, source) for method, source in (in_color or {}).items()}
    taken = [pair.name for pair in pairs if share is None or pair.name in share]
    missing = [Path(results[method], f"{name}.*") for method, files in luma.items() for name in taken if name not in files]
    matched = {file for files in luma.values() for file in files.values()}
    surplus = [file for source in results.values() for file in find_images(source).values() if file not in matched]
    _require_all((*missing, *surplus), partial)
    cases = tuple(
        Case(pair.name, pair.a, pair.b, {method: Result(luma[method][pair.name], color[method][pair.name]) for method in luma})
        for pair in pairs
        if (share is None or pair.name in share) and all(pair.name in files for files in luma.values())
    )
    if not cases:
        raise InputError(f"no image has a result of every method ({', '.join(results)})", "compare the folders")
    return CaseList(tuple(results), cases, (*left_out, *missing, *surplus))


def _match(names: list[str], source: str) -> dict[str, Path]:
    """Map names of pairs to results in ``source`` by the most frequent suffix.

    No suffix wins a tie, and a single file matches a single name.
    """
    files = find_images(source)
    if len(names) == len(files) == 1:
        return dict(zip(names, files.values(), strict=True))
    hits: dict[str, int] = {}
    for name in names:
        for stem in files:
            if stem.startswith(name):
                tail = stem.removeprefix(name)
                hits[tail] = hits.get(tail, 0) + 1
    most = max(hits.values(), default=0)
    best = sorted(tail for tail, count in hits.items() if count == most)
    if not best:
        raise InputError(
            f"no result in {source} has the stem of a source: there is {next(iter(files))}, but {names[0]} among the sources",
            "rename the results",
        )
    if len(best) > 1 and best[0]:
        raise InputError(
            f"{source} holds several kinds of results, ending in {', '.join(best)}",
            f"choose one with a pattern, such as '{source}/*{best[0]}.*'",
        )
    return {name: files[name + best[0]] for name in names if name + best[0] in files}


def _require_all(unmatched: Iterable[Path], partial: bool) -> None:
    paths = [str(path) for path in unmatched]
    if paths and not partial:
        more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
        raise InputError(
            f"no counterpart for {', '.join(paths[:_LISTED])}{more}",
            "add the missing files, or score the others with --partial",
        )
