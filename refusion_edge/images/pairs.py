"""Pairs of image files, matched by stem."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.files import natural_key
from refusion_edge.images.io import READABLE_SUFFIXES, read_image

_LISTED = 5


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
    """

    pairs: tuple[PairPaths, ...]
    only_a: tuple[Path, ...] = ()
    only_b: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class ImagePair:
    """The two images of a pair in memory.

    Attributes:
        name: Name of the pair.
        a: Source a, (H, W) or (H, W, 3) RGB; uint8, uint16 or float32.
        b: Source b, likewise.
    """

    name: str
    a: Array
    b: Array


def read_pair(paths: PairPaths) -> ImagePair:
    """Read the two files of a pair.

    Raises:
        InputError: One of them cannot be read.
    """
    return ImagePair(paths.name, read_image(paths.a), read_image(paths.b))


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
    common = sorted(by_stem_a.keys() & by_stem_b.keys(), key=natural_key)
    if not common:
        raise InputError(
            f"{a} ({_some(by_stem_a)}) and {b} ({_some(by_stem_b)}) have no file stem in common",
            "rename the files so that those of a pair share their stem",
        )
    return PairList(
        tuple(PairPaths(stem, by_stem_a[stem], by_stem_b[stem]) for stem in common),
        tuple(by_stem_a[stem] for stem in sorted(by_stem_a.keys() - by_stem_b.keys(), key=natural_key)),
        tuple(by_stem_b[stem] for stem in sorted(by_stem_b.keys() - by_stem_a.keys(), key=natural_key)),
    )


def find_images(source: str) -> dict[str, Path]:
    """List the images of a folder or glob pattern.

    Args:
        source: Folder, pattern or single file.

    Returns:
        Stem to file, in natural order of the names.

    Raises:
        InputError: There is no image, or a stem occurs twice.
    """
    files: dict[str, Path] = {}
    for path in _image_files(source):
        if path.stem in files:
            raise InputError(
                f"{files[path.stem].name} and {path.name} in {source} have the same stem", "remove or rename one of them"
            )
        files[path.stem] = path
    if not files:
        raise InputError(
            f"there are no images in {source}", f"name a folder with images that end in {', '.join(sorted(READABLE_SUFFIXES))}"
        )
    return files


def _image_files(source: str) -> Iterable[Path]:
    folder = Path(source)
    if not folder.exists() and not glob.has_magic(source):
        raise InputError(f"there is no file or folder at {source}", "check the path")
    found = folder.iterdir() if folder.is_dir() else map(Path, glob.glob(source, recursive=True))
    images = (path for path in found if path.suffix.lower() in READABLE_SUFFIXES and path.is_file())
    return sorted(images, key=lambda path: (path.parent, natural_key(path.name)))


def _kind(source: str) -> str:
    return "the folder or pattern" if is_collection(source) else "the file"


def _some(stems: Iterable[str]) -> str:
    names = sorted(stems, key=natural_key)
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
