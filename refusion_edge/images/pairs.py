"""Pairs of image files, matched by their names.

Names are compared in Unicode's composed form, because macOS decomposes them. Where names differ only in a word for the source,
as in ``00001_ir.png`` and ``00001_vis.png``, it is left out.
"""

from __future__ import annotations

import glob
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.files import natural_key
from refusion_edge.images.io import MOST_PIXELS, READABLE_SUFFIXES, read_still
from refusion_edge.images.still import Encoding, Still, default_encoding

_LISTED = 5
# Words for source a and for source b in the names of files, as data sets and cameras write them.
_WORDS = (
    (
        "ir",
        "inf",
        "infrared",
        "thermal",
        "therm",
        "tir",
        "lwir",
        "mwir",
        "previewdata",
        "func",
        "pet",
        "spect",
        "ct",
        "near",
        "under",
    ),
    ("vis", "vi", "visible", "visual", "rgb", "color", "colour", "eo", "mri", "mr", "far", "over"),
)
# Single letters are also names of cameras, versions and scenes: they count only without a word, and at the end first.
_LETTERS = (("t", "a"), ("v", "b"))


def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"[ _.-]*(?<![a-z])(?:{'|'.join(words)})(?![a-z])[ _.-]*", re.IGNORECASE)


_WORD_PATTERNS = tuple((_pattern(words), _pattern(letters)) for words, letters in zip(_WORDS, _LETTERS, strict=True))


@dataclass(frozen=True, slots=True)
class PairPaths:
    """The two files of one pair.

    Attributes:
        name: The common stem; for two single files, that of source a.
        a: File of source a.
        b: File of source b.
    """

    name: str
    a: Path
    b: Path


@dataclass(frozen=True, slots=True)
class PairList:
    """The pairs found in two folders.

    Attributes:
        pairs: Pairs, ordered by name.
        only_a: Files of source a without a counterpart.
        only_b: Files of source b without a counterpart.
        ignored: Files beside them that are no images, judged by their suffix; hidden files are not listed.
        by_word: Number of pairs whose names differ in a word for the source.
    """

    pairs: tuple[PairPaths, ...]
    only_a: tuple[Path, ...] = ()
    only_b: tuple[Path, ...] = ()
    ignored: tuple[Path, ...] = ()
    by_word: int = 0

    @property
    def matching(self) -> list[str]:
        """How names were matched, if it needs saying."""
        if not self.by_word:
            return []
        example = self.pairs[0]
        return [
            f"matched without the words for the source in their names: {self.by_word} pairs, such as "
            f"{example.a.name} and {example.b.name}"
        ]

    def remarks(self) -> list[str]:
        """What was left out and how names were matched, one phrase each."""
        said = self.matching
        for reason, files in (("no counterpart", (*self.only_a, *self.only_b)), ("no supported suffix", self.ignored)):
            if files:
                said.append(f"left out, {reason}: {len(files)} ({some_names(str(path) for path in files)})")
        return said


@dataclass(frozen=True, slots=True)
class ImagePair:
    """The two images of a pair in memory.

    Attributes:
        name: Name of the pair.
        a: Source a, (H, W) or (H, W, 3) RGB, as in ``refusion_edge.images.still.Still``.
        b: Source b, likewise.
        encodings: What the file of each source says about its pixels; None where there is no file.
    """

    name: str
    a: Array
    b: Array
    encodings: tuple[Encoding | None, Encoding | None] = (None, None)

    @property
    def stills(self) -> tuple[Still, Still]:
        """Both sources with what their files say about them, as ``Fuser.fuse`` takes them."""
        a, b = (
            Still(pixels, encoding or default_encoding(pixels))
            for pixels, encoding in zip((self.a, self.b), self.encodings, strict=True)
        )
        return a, b


def read_pair(paths: PairPaths, *, max_pixels: int = MOST_PIXELS) -> ImagePair:
    """Read the two files of a pair.

    Args:
        paths: The files.
        max_pixels: Largest number of pixels to decode of each, according to its header.

    Raises:
        InputError: One of them cannot be read.
    """
    a, b = (read_still(path, max_pixels=max_pixels) for path in (paths.a, paths.b))
    return ImagePair(paths.name, a.pixels, b.pixels, (a.encoding, b.encoding))


def fingerprint(pairs: Iterable[ImagePair]) -> str:
    """SHA-256 over the pixels of several pairs, in hex digits."""
    digest = hashlib.sha256()
    for pair in pairs:
        for image in (pair.a, pair.b):
            digest.update(f"{image.shape}{image.dtype}".encode())
            digest.update(image.tobytes())
    return digest.hexdigest()


def is_collection(source: str) -> bool:
    """Tell whether a source names several files: a folder or a glob pattern.

    Raises:
        InputError: The name is empty or not a valid file name.
    """
    if not source:
        raise InputError("the name of a file or folder is empty", "check the command")
    path = Path(source)
    try:
        return path.is_dir() or (not path.exists() and glob.has_magic(source))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{source[:40]!r}... is not a valid name of a file or folder ({error.args[-1]})", "check the path"
        ) from error


def find_pairs(a: str, b: str) -> PairList:
    """Match two files, two folders or two glob patterns.

    Args:
        a: File, folder or pattern of source a.
        b: The same for source b; a folder and a pattern may be mixed.

    Returns:
        The pairs, and the files without a counterpart.

    Raises:
        InputError: Only one of them is a single file, a folder contains no image, a stem occurs twice in one folder,
            or the two have no stem in common.
    """
    if is_collection(a) != is_collection(b):
        raise InputError(f"cannot pair {_kind(a)} {a} with {_kind(b)} {b}", "give two files or two folders")
    if not is_collection(a):
        return PairList((PairPaths(Path(a).stem, Path(a), Path(b)),))
    by_stem_a, by_stem_b = find_images(a), find_images(b)
    common = by_stem_a.keys() & by_stem_b.keys()
    pairs = [PairPaths(stem, by_stem_a[stem], by_stem_b[stem]) for stem in common]
    rest_a, rest_b = (
        _without_word({stem: path for stem, path in files.items() if stem not in common}, patterns)
        for files, patterns in zip((by_stem_a, by_stem_b), _WORD_PATTERNS, strict=True)
    )
    by_word = [PairPaths(key, rest_a[key], rest_b[key]) for key in rest_a.keys() & rest_b.keys() if key not in common]
    pairs = sorted([*pairs, *by_word], key=lambda pair: natural_key(pair.name))
    if not pairs:
        raise InputError(
            f"{a} ({some_names(by_stem_a)}) and {b} ({some_names(by_stem_b)}) have no file stem in common",
            "rename the files so that those of a pair share their stem",
        )
    matched = {path for pair in pairs for path in (pair.a, pair.b)}
    return PairList(
        tuple(pairs),
        tuple(path for path in by_stem_a.values() if path not in matched),
        tuple(path for path in by_stem_b.values() if path not in matched),
        (*_other_files(a), *(_other_files(b) if b != a else ())),
        len(by_word),
    )


def _without_word(files: Mapping[str, Path], patterns: tuple[re.Pattern[str], re.Pattern[str]]) -> dict[str, Path]:
    """Files by their stems without the word for the source, which is put in the place of any separators around it."""
    found: dict[str, list[Path]] = {}
    for stem, path in files.items():
        words, letters = (list(pattern.finditer(stem)) for pattern in patterns)
        # The first word, or else the last letter.
        match = next(iter(words or letters[-1:]), None)
        key = stem if match is None else f"{stem[: match.start()]}_{stem[match.end() :]}".strip("_")
        found.setdefault(key or stem, []).append(path)
    return {key: paths[0] for key, paths in found.items() if len(paths) == 1}


def find_images(source: str) -> dict[str, Path]:
    """List the images of a folder or glob pattern.

    Args:
        source: Folder, pattern or single file.

    Returns:
        Stem, in Unicode's composed form, to file; in natural order of the names.

    Raises:
        InputError: There is no image, or a stem occurs twice.
    """
    files: dict[str, Path] = {}
    for path in _listed(source):
        if path.suffix.lower() not in READABLE_SUFFIXES:
            continue
        stem = unicodedata.normalize("NFC", path.stem)
        if stem in files:
            raise InputError(
                f"{files[stem].name} and {path.name} in {source} have the same stem", "remove or rename one of them"
            )
        files[stem] = path
    if not files:
        raise InputError(
            f"there are no images in {source}", f"the supported suffixes are {', '.join(sorted(READABLE_SUFFIXES))}"
        )
    return files


def _other_files(source: str) -> tuple[Path, ...]:
    """Files of a folder that are no images; a pattern names its files itself."""
    if not Path(source).is_dir():
        return ()
    return tuple(path for path in _listed(source) if path.suffix.lower() not in READABLE_SUFFIXES)


def _listed(source: str) -> list[Path]:
    """The files of a folder or pattern that are not hidden, in natural order; broken links are kept, and fail when read."""
    folder = Path(source)
    try:
        if not folder.exists() and not folder.is_symlink() and not glob.has_magic(source):
            raise InputError(f"there is no file or folder at {source}", "check the path")
        found = folder.iterdir() if folder.is_dir() else map(Path, glob.glob(source, recursive=True))
        files = (path for path in found if not path.name.startswith(".") and (path.is_file() or path.is_symlink()))
        return sorted(files, key=lambda path: (path.parent, natural_key(path.name)))
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot list {source}: {error.strerror or error}", "check the path and its permissions") from error


def _kind(source: str) -> str:
    return "the folder or pattern" if is_collection(source) else "the file"


def some_names(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = sorted(names, key=natural_key)
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
