"""Untrusted JSON and YAML: parsed within limits of depth and number size, then checked against types.

``parse_json`` and ``parse_yaml`` return only ``dict`` with text keys, ``list``, ``str``, ``int``, ``float``, ``bool``, and
None; ``typed`` turns them into data classes. ``files.read_file`` limits the length of the text.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from refusion_edge.errors import InputError, RefusionError
from refusion_edge.text import printable, redact

MOST_DEPTH = 64
# Every count, time and size of ours fits into 64 bits.
MOST_INTEGER = (1 << 63) - 1

_REMEDY = "make it again"
_SHOWN = 60
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "nothing"}

_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,400}|[0-9]{1,400}\.[0-9]{0,400})([eE][-+]?[0-9]{1,4})?")
_SPECIAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
_MATRIX_TAGS = "tag:yaml.org,2002:opencv-"

T = TypeVar("T")


def parse_json(text: bytes | str, source: str, *, error: type[RefusionError] = InputError) -> Any:
    """Parse strict JSON (RFC 8259) without duplicate keys.

    Args:
        text: The document; bytes in UTF-8, with or without a byte order mark.
        source: Name of the document in messages.
        error: Type of exception to raise.

    Raises:
        RefusionError: Of the type ``error``: it is not JSON, is nested more than 64 levels deep, or contains a number that is
            not finite or needs more than 64 bits, or text that is not Unicode.
    """
    try:
        value = json.loads(
            text.decode("utf-8-sig") if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
        )
        _check(value)
    except RecursionError:
        raise error(f"cannot read {source}: it is nested more than {MOST_DEPTH} levels deep", _REMEDY) from None
    except ValueError as problem:
        raise error(f"cannot read {source}: it is not valid JSON ({brief(problem)})", _REMEDY) from problem
    return value


def typed(kind: type[T], value: object, name: str, *, error: type[RefusionError] = InputError) -> T:
    """Convert plain values to a type, checking every part.

    Args:
        kind: A data class, ``int``, ``float``, ``bool``, ``str``, ``dict[str, X]``, ``list[X]``, ``tuple``, ``Literal``, or a
            union of these with None. Integers are accepted as floats; booleans are not accepted as numbers.
        value: What ``parse_json`` or ``parse_yaml`` returned, or the equivalent from TOML.
        name: Name of the value in messages; its parts are called ``name.part``.
        error: Type of exception to raise.

    Raises:
        RefusionError: Of the type ``error``, with the place and the value.
    """
    return cast("T", _typed(kind, value, name, error))


def parse_yaml(text: bytes | str, source: str, *, error: type[RefusionError] = InputError, matrices: bool = False) -> Any:
    """Parse the part of YAML that configuration files need: mappings, lists, and plain values, nested up to 64 levels.

    Anchors, aliases, tags, merged and duplicate keys, and integers that are not plain decimals are refused. Words such as
    ``yes`` and ``off`` are text.

    Args:
        text: The document.
        source: Name of the document in messages.
        error: Type of exception to raise.
        matrices: Whether to accept, and ignore, the tags of OpenCV's FileStorage.

    Raises:
        RefusionError: Of the type ``error``.
    """
    import yaml

    # Both produce the same events; the one in C is ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Builder(matrices=matrices).document(yaml.parse(text, loader))
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        reason = getattr(problem, "problem", None) or brief(problem)
        raise error(f"cannot read {source}: it is not valid YAML{where} ({reason})", "correct it") from problem


def shown(value: object) -> str:
    """Render an untrusted value in a few characters, for a message."""
    if isinstance(value, int) and abs(value) > MOST_INTEGER:
        return "a huge integer"
    if isinstance(value, dict | list):
        # Its content may be secret.
        return f"{'a table' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return printable(redact(ascii(value) if isinstance(value, str) and _SURROGATE.search(value) else repr(value)), _SHOWN)


def brief(problem: Exception) -> str:
    """Shorten what a library says about a file to part of one line."""
    return printable(redact(" ".join(str(problem).split()) or type(problem).__name__), 2 * _SHOWN)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _check(document: Any) -> None:
    """Check every value of a document, without recursion."""
    level = [document]
    for _ in range(MOST_DEPTH + 1):
        containers = [value for value in level if isinstance(value, dict | list)]
        _check_scalars(value for value in level if not isinstance(value, dict | list))
        if not containers:
            return
        level = []
        for value in containers:
            if isinstance(value, dict):
                _check_scalars(value)
            level.extend(value.values() if isinstance(value, dict) else value)
    raise RecursionError


def _check_scalars(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, str) and _SURROGATE.search(value):
            raise ValueError("it contains half a character")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is too large")
        if isinstance(value, int) and abs(value) > MOST_INTEGER:
            raise ValueError("a whole number needs more than 64 bits")


def _typed(kind: Any, value: Any, name: str, error: type[RefusionError]) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        made = value
    elif origin in (Union, types.UnionType):
        made = _one_of(arguments, value, name, error)
    elif is_dataclass(kind):
        made = _made(kind, value, name, error)
    elif origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            _refuse("a table", value, name, error)
        made = {key: _typed(arguments[1], part, _joined(name, key), error) for key, part in value.items()}
    elif origin in (list, tuple):
        made = _listed(origin, arguments, value, name, error)
    elif origin is Literal:
        # By type as well: 1 equals true.
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            _refuse(f"one of {', '.join(map(str, arguments))}", value, name, error)
        made = value
    else:
        made = _scalar(kind, value, name, error)
    return made


def _scalar(kind: Any, value: Any, name: str, error: type[RefusionError]) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= MOST_INTEGER else _refuse("a number", value, name, error)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        _refuse(_KINDS.get(kind, str(kind)), value, name, error)
    if kind is int and abs(value) > MOST_INTEGER:
        _refuse("a whole number of at most 64 bits", value, name, error)
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, name: str, error: type[RefusionError]) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return _typed(others[0], value, name, error)
    for kind in others:
        try:
            return _typed(kind, value, name, error)
        except error:
            continue
    return _refuse(" or ".join(_KINDS.get(kind, str(kind)) for kind in others), value, name, error)


def _made(kind: Any, value: Any, name: str, error: type[RefusionError]) -> Any:
    if not isinstance(value, Mapping):
        _refuse("a table", value, name, error)
    known = {field.name: field for field in fields(kind) if field.init}
    inside = f" in {name}" if name else ""
    for key in value:
        if key not in known:
            nearest = difflib.get_close_matches(str(key)[:_SHOWN], known, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"the known keys are {', '.join(known)}"
            raise error(f"unknown key {shown(key)}{inside}", hint)
    missing = [
        key for key, field in known.items()
        if key not in value and field.default is MISSING and field.default_factory is MISSING
    ]  # fmt: skip
    if missing:
        raise error(f"no value for {', '.join(_joined(name, key) for key in missing)}", "add what is missing")
    hints = get_type_hints(kind)
    return kind(**{key: _typed(hints[key], part, _joined(name, key), error) for key, part in value.items()})


def _listed(origin: Any, kinds: tuple[Any, ...], value: Any, name: str, error: type[RefusionError]) -> Any:
    if not isinstance(value, list | tuple):
        _refuse("a list", value, name, error)
    if origin is list or (len(kinds) == 2 and kinds[1] is ...):
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        _refuse(f"a list of {len(kinds)}", value, name, error)
    parts = enumerate(zip(kinds, value, strict=True))
    return origin(_typed(kind, part, f"{name}[{index}]", error) for index, (kind, part) in parts)


def _refuse(wanted: str, value: Any, name: str, error: type[RefusionError]) -> NoReturn:
    raise error(f"{name or 'the document'} must be {wanted}, not {shown(value)}", "correct it", expected=wanted, got=value)


def _joined(name: str, key: str) -> str:
    part = key if key.isidentifier() and len(key) <= _SHOWN else shown(key)
    return f"{name}.{part}" if name else part


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been reached yet."""

    value: dict[str, Any] | list[Any]
    key: str | None = None


class _Builder:
    """Builds plain values from YAML events, without recursion."""

    def __init__(self, *, matrices: bool) -> None:
        self._matrices = matrices
        self._open: list[_Open] = []
        self._documents: list[Any] = []

    def document(self, events: Iterator[Any]) -> Any:
        for event in events:
            kind = type(event).__name__
            if handler := self._HANDLERS.get(kind):
                handler(self, event)
        if len(self._documents) != 1:
            raise ValueError(f"it contains {len(self._documents)} documents instead of one")
        return self._documents[0]

    def _start(self, event: Any) -> None:
        self._check_properties(event)
        if len(self._open) >= MOST_DEPTH:
            _refuse_yaml(event, f"it is nested more than {MOST_DEPTH} levels deep")
        self._require_key_free(event)
        self._open.append(_Open({} if type(event).__name__ == "MappingStartEvent" else []))

    def _end(self, event: Any) -> None:
        self._put(self._open.pop().value, event)

    def _scalar(self, event: Any) -> None:
        self._check_properties(event)
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            if event.value in top.value:
                _refuse_yaml(event, f"the key {shown(event.value)} appears twice")
            # With a number, a boolean or null as a key, we would have to guess what was meant.
            if event.implicit[0] and (event.value == "<<" or not isinstance(_resolve(event), str)):
                _refuse_yaml(event, f"the key {shown(event.value)} is not text; put it in quotes")
            top.key = event.value
            return
        self._put(_resolve(event) if event.implicit[0] else event.value, event)

    def _alias(self, event: Any) -> None:
        _refuse_yaml(event, "aliases are not supported; write the value out")

    def _put(self, value: Any, event: Any) -> None:
        if not self._open:
            self._documents.append(value)
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is not None:
            top.value[top.key], top.key = value, None

    def _require_key_free(self, event: Any) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            _refuse_yaml(event, "a list or mapping is used as a key")

    def _check_properties(self, event: Any) -> None:
        if event.anchor is not None:
            _refuse_yaml(event, "anchors are not supported; write the value out")
        if event.tag is not None and not (self._matrices and event.tag.startswith(_MATRIX_TAGS)):
            # A password that starts with an exclamation mark is a tag to YAML.
            _refuse_yaml(event, "tags are not supported; put text that starts with an exclamation mark in quotes")

    _HANDLERS: Mapping[str, Callable[[_Builder, Any], None]] = types.MappingProxyType(
        {
            "MappingStartEvent": _start,
            "SequenceStartEvent": _start,
            "MappingEndEvent": _end,
            "SequenceEndEvent": _end,
            "ScalarEvent": _scalar,
            "AliasEvent": _alias,
        }
    )


def _resolve(event: Any) -> Any:
    """Resolve a plain scalar of YAML 1.1 where its meaning is beyond doubt."""
    from yaml.nodes import ScalarNode

    text = event.value
    kind = _resolver().resolve(ScalarNode, text, (True, False)).rpartition(":")[2]
    value = text
    if kind == "null":
        value = None
    elif kind == "bool" and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif kind == "int":
        value = int(text) if _DECIMAL.fullmatch(text) else MOST_INTEGER + 1
        # Octal, hexadecimal, base 60, underscores, 1,000 digits: what number was meant is uncertain.
        if abs(value) > MOST_INTEGER:
            _refuse_yaml(event, f"the number {shown(text)} is not a plain decimal one of at most 64 bits")
    elif kind == "float":
        special = _SPECIAL.get(text.lower())
        value = special if special is not None else float(text) if _FLOAT.fullmatch(text) else math.inf
        if special is None and not math.isfinite(value):
            _refuse_yaml(event, f"the number {shown(text)} is too large or not a plain decimal one")
    return value


@functools.cache
def _resolver() -> Any:
    from yaml.resolver import Resolver

    return Resolver()


def _refuse_yaml(event: Any, problem: str) -> NoReturn:
    import yaml

    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
