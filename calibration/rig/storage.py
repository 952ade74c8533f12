"""Files of OpenCV's ``cv2.FileStorage``, read without OpenCV, whose reader a stranger's file can crash.

YAML, JSON and XML become plain values within limits; of the matrices in them, those that are asked for are made.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from refusion_edge.calibration.rig.motion import Numbers
from refusion_edge.documents import MOST_DEPTH, brief, parse_yaml, typed
from refusion_edge.errors import InputError
from refusion_edge.files import read_file

# Fifty views of a large board have 0.5 MB.
_MOST_BYTES = 2 << 20
_MOST_NUMBERS = 4096
_ELEMENT = re.compile(r"([1-9]?)([ucwsifdh])")
_SPECIAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}


def read_storage(path: Path) -> dict[str, Any]:
    """Read a file, whichever form it has.

    Returns:
        Name to plain value: text, number, list or dictionary; a matrix is a dictionary, see ``to_matrix``.

    Raises:
        InputError: It cannot be read, is too long or nested too deeply, or has none of the forms.
    """
    data = read_file(path, kind="OpenCV calibration file", most_bytes=_MOST_BYTES)
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no OpenCV calibration file but binary data", "save it with FileStorage") from error
    start = text.lstrip()[:1]
    if start == "<":
        return _read_xml(text, path)
    if text.startswith("%YAML"):
        text = text.partition("\n")[2]
    if start == "{":
        text = re.sub(r"(?m)^[ \t]*//.*$", "", text)
    # OpenCV escapes what neither YAML nor JSON lets be escaped; the numbers of its JSON are YAML's, not JSON's.
    value = parse_yaml(text.replace("\\'", "'"), str(path), matrices=True)
    return typed(dict[str, Any], value, str(path))


def to_matrix(value: object, name: str) -> Numbers | None:
    """Make a matrix of a value.

    Args:
        value: What ``read_storage`` gave for a name.
        name: What to call it in messages.

    Returns:
        (rows, cols) or (rows, cols, channels); (n,) of a plain list of numbers; None if the value is neither.

    Raises:
        InputError: It is a matrix whose size, type and numbers contradict each other, or which is too large.
    """
    if isinstance(value, list | str):
        numbers = _numbers(value)
        return None if numbers is None or not numbers.size else numbers
    if not isinstance(value, dict):
        return None
    element = _ELEMENT.fullmatch(str(value.get("dt", "")).strip('" '))
    sides = [_whole(value.get(key)) for key in ("rows", "cols")]
    numbers = _numbers(value.get("data"))
    if element is None or numbers is None or min(sides) < 1:
        raise InputError(f"{name} is no two-dimensional matrix of numbers", "save it with FileStorage")
    shape = (*sides, int(element[1] or 1))
    if math.prod(shape) != numbers.size:
        raise InputError(
            f"{name} holds {numbers.size} numbers, which is not {shape[0]} x {shape[1]} x {shape[2]}",
            "calibrate again",
            expected=math.prod(shape),
            got=numbers.size,
        )
    if element[2] == "f":
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.float32).astype(np.float64)
    return numbers.reshape(shape if shape[2] > 1 else shape[:2])


def to_number(value: object) -> float | None:
    """A finite number that is not below zero, or None."""
    numbers = _numbers([value])
    return float(numbers[0]) if numbers is not None and 0 <= numbers[0] < math.inf else None


def _whole(value: object) -> int:
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 6 else -1


def _numbers(value: object) -> Numbers | None:
    words = value.split(maxsplit=_MOST_NUMBERS + 1) if isinstance(value, str) else value
    if not isinstance(words, list) or len(words) > _MOST_NUMBERS:
        return None
    numbers = []
    for word in words:
        if isinstance(word, bool) or not isinstance(word, int | float | str):
            return None
        try:
            special = _SPECIAL.get(word.lower()) if isinstance(word, str) else None
            numbers.append(float(word) if special is None else special)
        except ValueError:
            return None
    return np.array(numbers, np.float64)


def _read_xml(text: str, path: Path) -> dict[str, Any]:
    tree = _Tree()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = tree.start, tree.end
    parser.CharacterDataHandler = tree.characters
    parser.StartDoctypeDeclHandler = tree.refuse
    try:
        parser.Parse(text.encode(), True)
    except (expat.ExpatError, ValueError) as error:
        raise InputError(f"{path} is no XML of OpenCV ({brief(error)})", "save it with FileStorage") from error
    if tree.name != "opencv_storage" or not isinstance(tree.root, dict):
        raise InputError(f"{path} is XML of another program", "save it with FileStorage")
    return tree.root


class _Tree:
    """Builds plain values of XML: elements with names are a dictionary, those named ``_`` a list, all others text."""

    def __init__(self) -> None:
        self.name = ""
        self.root: Any = None
        self._open: list[tuple[str, dict[str, Any], list[Any], list[str]]] = []

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        if len(self._open) >= MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
        self._open.append((name, {}, [], []))

    def end(self, _name: str) -> None:
        name, named, listed, texts = self._open.pop()
        value: Any = named or listed or "".join(texts).strip()
        if not self._open:
            self.name, self.root = name, value
        elif name == "_":
            self._open[-1][2].append(value)
        elif name in self._open[-1][1]:
            raise ValueError(f"{name[:40]} comes twice")
        else:
            self._open[-1][1][name] = value

    def characters(self, text: str) -> None:
        if self._open:
            self._open[-1][3].append(text)

    def refuse(self, *_declaration: object) -> None:
        # Entities are declared there, which a few bytes can unfold into gigabytes, or into the files of this machine.
        raise ValueError("it declares a document type")
