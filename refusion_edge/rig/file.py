"""``rig.yaml``: strict reading and lossless writing of a camera rig.

Unknown, missing or duplicate keys, values of the wrong type and other schemas are refused with their place and the nearest
name; nothing is guessed. ``model`` defines the rig.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from refusion_edge.documents import parse_yaml, shown
from refusion_edge.errors import RigError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.rig.model import (
    GAIN_METHODS,
    LENS_MODELS,
    POLARITIES,
    SOURCE_NAMES,
    Lens,
    ParallaxModel,
    Rig,
    RigAlignment,
    RigSource,
    Row,
)
from refusion_edge.text import secrets_in

SCHEMA = "refusion-edge/rig/1"

Choice = TypeVar("Choice", bound=str)

_HEADER = """\
# Camera rig of refusion-edge; created and checked by 'refusion-edge align'.
# Pixels are points, (0, 0) is the center of the top left one. frame -> lens removed -> crop_xywh = view.
# homography: point of the base view -> point of the other view. Distances in meters, .inf for far away.
# time_offset_ms: added to time stamps of ir so that they agree with those of vis.
"""
_MAX_BYTES = 1 << 18
_TOP = "the rig"


def read_rig(path: str | os.PathLike[str]) -> Rig:
    """Read ``rig.yaml``.

    Raises:
        RigError: The file is missing, unreadable or not YAML; has another schema or an unknown, missing or duplicate key;
            or contains an invalid value.
    """
    path = Path(path)
    text = read_file(path, kind="rig file", most_bytes=_MAX_BYTES, error=RigError)
    try:
        return parse_rig(text)
    except RigError as error:
        raise error.within(str(path)) from error


def write_rig(path: str | os.PathLike[str], rig: Rig) -> None:
    """Write ``rig.yaml`` atomically; reading it back gives an equal rig, to the last digit.

    If the address of a source contains a password, only the owner may read the file.

    Raises:
        OutputError: The file cannot be written; nothing is left behind.
    """
    secret = any(source.uri is not None and secrets_in(source.uri) for source in (rig.ir, rig.vis))
    write_atomically(Path(path), format_rig(rig).encode(), mode=0o600 if secret else None)


def format_rig(rig: Rig) -> str:
    """Format a rig as YAML; equal rigs give equal text."""
    import yaml

    document = _plain({"schema": SCHEMA, **asdict(rig)})
    body: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=128)
    return _HEADER + body


def parse_rig(text: str | bytes) -> Rig:
    """Parse a rig from YAML.

    Raises:
        RigError: See ``read_rig``.
    """
    top = _Node(_TOP, parse_yaml(text, _TOP, error=RigError))
    schema = top.take("schema")
    if schema != SCHEMA:
        raise RigError(
            f"the rig has the schema {shown(schema)} instead of {SCHEMA}",
            "make the file again with refusion-edge align",
            expected=SCHEMA,
            got=schema,
        )
    # Keys are checked before values, so that a mistyped key is reported as such.
    ir, vis, alignments = top.node("ir"), top.node("vis"), top.nodes("alignments")
    base = top.choice("base", SOURCE_NAMES, "vis")
    polarity, gain = top.choice("polarity", POLARITIES, "white"), top.choice("gain", GAIN_METHODS, "percentile")
    time_offset_ms, time_error_ms = top.optional_number("time_offset_ms"), top.optional_number("time_error_ms")
    parallax = top.optional_node("parallax")
    top.finish()
    return Rig(
        ir=_parse_source(ir),
        vis=_parse_source(vis),
        alignments=tuple(map(_parse_alignment, alignments)),
        base=base,
        polarity=polarity,
        gain=gain,
        time_offset_ms=time_offset_ms,
        time_error_ms=time_error_ms,
        parallax=_parse_parallax(parallax),
    )


def _parse_source(node: _Node) -> RigSource:
    uri, size, crop = node.optional_text("uri"), node.integers("size_wh", 2), node.optional_integers("crop_xywh", 4)
    lens = node.optional_node("lens")
    node.finish()
    return RigSource(
        size_wh=(size[0], size[1]),
        uri=uri,
        crop_xywh=None if crop is None else (crop[0], crop[1], crop[2], crop[3]),
        lens=_parse_lens(lens),
    )


def _parse_lens(node: _Node | None) -> Lens | None:
    if node is None:
        return None
    model, focal, center = node.choice("model", LENS_MODELS, None), node.numbers("focal_px", 2), node.numbers("centre_px", 2)
    distortion = node.numbers("distortion", None)
    node.finish()
    return Lens(model, (focal[0], focal[1]), (center[0], center[1]), distortion)


def _parse_alignment(node: _Node) -> RigAlignment:
    distance_m, homography = node.optional_number("distance_m"), node.matrix("homography")
    error_px, method = node.optional_number("error_px"), node.optional_text("error_method")
    node.finish()
    return RigAlignment(distance_m, homography, error_px, "not measured" if method is None else method)


def _parse_parallax(node: _Node | None) -> ParallaxModel | None:
    if node is None:
        return None
    focal_px, baseline_m = node.number("focal_px"), node.number("baseline_m")
    node.finish()
    return ParallaxModel(focal_px, baseline_m)


class _Node:
    """A mapping of the file, read key by key; keys left over at the end are unknown."""

    def __init__(self, name: str, value: Any) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise RigError(
                f"{name} must be a mapping of keys to values, not {shown(value)}",
                "correct it or make the file again",
                expected="a mapping",
                got=value,
            )
        self.name = name
        self._values: dict[str, Any] = dict(value)
        self._asked: list[str] = []

    def take(self, key: str, *default: Any) -> Any:
        self._asked.append(key)
        if key in self._values:
            return self._values.pop(key)
        if default:
            return default[0]
        near = difflib.get_close_matches(key, self._values, n=1)
        hint = f"rename '{near[0]}' if that is meant to be it" if near else "add it"
        raise RigError(f"the key '{key}' is missing in {self.name}", hint)

    def finish(self) -> None:
        for key in self._values:
            near = difflib.get_close_matches(key, self._asked, n=1, cutoff=0.5)
            hint = f"rename it to '{near[0]}' if that was meant" if near else "remove it"
            raise RigError(f"unknown key {shown(key)} in {self.name}", hint)

    def node(self, key: str) -> _Node:
        return _Node(self._place(key), self.take(key))

    def optional_node(self, key: str) -> _Node | None:
        value = self.take(key, None)
        return None if value is None else _Node(self._place(key), value)

    def nodes(self, key: str) -> list[_Node]:
        place = self._place(key)
        return [_Node(f"{place}[{index}]", each) for index, each in enumerate(_list(place, self.take(key), None, "entries"))]

    def choice(self, key: str, choices: Sequence[Choice], default: Choice | None) -> Choice:
        value = self.take(key) if default is None else self.take(key, default)
        for choice in choices:
            if value == choice:
                return choice
        raise RigError(
            f"{self._place(key)} is {shown(value)}", f"choose one of {', '.join(choices)}", expected=tuple(choices), got=value
        )

    def number(self, key: str) -> float:
        return _number(self._place(key), self.take(key))

    def optional_number(self, key: str) -> float | None:
        value = self.take(key, None)
        return None if value is None else _number(self._place(key), value)

    def numbers(self, key: str, count: int | None) -> tuple[float, ...]:
        return _numbers(self._place(key), self.take(key), count)

    def matrix(self, key: str) -> tuple[Row, Row, Row]:
        place = self._place(key)
        rows = [_numbers(f"{place}[{index}]", row, 3) for index, row in enumerate(_list(place, self.take(key), 3, "rows"))]
        first, second, third = ((row[0], row[1], row[2]) for row in rows)
        return first, second, third

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        return _integers(self._place(key), self.take(key), count)

    def optional_integers(self, key: str, count: int) -> tuple[int, ...] | None:
        value = self.take(key, None)
        return None if value is None else _integers(self._place(key), value, count)

    def optional_text(self, key: str) -> str | None:
        value = self.take(key, None)
        if value is not None and not isinstance(value, str):
            raise RigError(
                f"{self._place(key)} must be text, not {shown(value)}", "put it in quotes", expected="text", got=value
            )
        return value

    def _place(self, key: str) -> str:
        return key if self.name == _TOP else f"{self.name}.{key}"


def _list(place: str, value: Any, count: int | None, what: str) -> list[Any]:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        wanted = f"{count} {what}" if count is not None else what
        raise RigError(f"{place} must be a list of {wanted}, not {shown(value)}", "correct it", expected=wanted, got=value)
    return value


def _number(place: str, value: Any) -> float:
    # To Python, True and False are integers.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RigError(f"{place} must be a number, not {shown(value)}", "correct it", expected="a number", got=value)
    return float(value)


def _numbers(place: str, value: Any, count: int | None) -> tuple[float, ...]:
    return tuple(_number(f"{place}[{index}]", each) for index, each in enumerate(_list(place, value, count, "numbers")))


def _integers(place: str, value: Any, count: int) -> tuple[int, ...]:
    for each in _list(place, value, count, "whole numbers"):
        if isinstance(each, bool) or not isinstance(each, int):
            raise RigError(
                f"{place} must be a list of whole numbers, not {shown(each)}", "correct it", expected="a whole number", got=each
            )
    return tuple(value)


def _plain(value: Any) -> Any:
    """Turn tuples into lists, because YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
