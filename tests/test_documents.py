"""JSON and YAML from anybody: limits, strictness, and types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from refusion_edge.documents import MOST_DEPTH, parse_json, parse_yaml, typed
from refusion_edge.errors import InputError, RigError
from tests.conftest import one_sentence


@dataclass(frozen=True)
class Inner:
    values: tuple[float, ...]
    pair: tuple[int, str]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    kind: Literal["a", "b"]
    counts: dict[str, int]
    maybe: Inner | None = None
    either: int | str = 0
    flag: bool = False
    names: list[str] = field(default_factory=list)


GOOD: dict[str, Any] = {"inner": {"values": [1, 2.5], "pair": [3, "x"]}, "kind": "a", "counts": {"n": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "[-1e400]",
        "9" * 30,
        "9" * 5000,
        '"\\ud800"',
        '{"\\udfff": 1}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1),
        '{"a":' * 70 + "1" + "}" * 70,
        b"\xff",
        b"",
        "{} {}",
    ],
)
def test_what_is_no_strict_json_is_one_error_of_the_asked_type(text: str | bytes) -> None:
    with pytest.raises(RigError) as caught:
        parse_json(text, "x.json", error=RigError)
    assert one_sentence(str(caught.value))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, true, null, "\\ud83d\\ude00"]}', "[" * MOST_DEPTH + "]" * MOST_DEPTH, "9007199254740993"]
)
def test_json_within_the_limits_is_read_as_the_library_reads_it(text: str) -> None:
    import json

    assert parse_json(text, "x.json") == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x",
        "a: &x 1",
        "*x",
        "a: !!int ''",
        "a: !!timestamp abc",
        "!!map [1, 2]",
        "!!python/object:os.system a",
        "!x a",
        "a: 1:2:3",
        f"a: {'1:' * 5000}1",
        f"a: {'1' * 5000}",
        "a: 010",
        "a: 0x1f",
        "a: 1_000",
        "a: 1.0e+999",
        "a: 12:30.5",
        "a: 1\na: 2",
        "<<: {a: 1}",
        "7: 8",
        "true: 1",
        "? [1]\n: 2",
        "[1]: 2",
        "a: 1\n---\nb: 2",
        "",
        "a: 'b",
        "\0",
        b"\xff\xfe\0",
        "[" * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "{a: " * 70 + "1" + "}" * 70,
    ],
)
@pytest.mark.parametrize("in_c", [True, False])
def test_what_is_no_plain_yaml_is_one_error(text: str | bytes, in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    with pytest.raises(RigError) as caught:
        parse_yaml(text, "x.yaml", error=RigError)
    assert one_sentence(str(caught.value))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("in_c", [True, False])
def test_plain_yaml_is_read(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    text = (
        "a: [1, -2.5, .inf, 1.0e+5, 1., yes, x y]\nb: {c: null, d: '7', e: }\nf:\n- true\n- rtsp://h:80/a?b=c#d\n- 1ab\n- 1e5\n"
    )
    assert parse_yaml(text, "x") == {
        "a": [1, -2.5, float("inf"), 1e5, 1.0, "yes", "x y"],
        "b": {"c": None, "d": "7", "e": None},
        "f": [True, "rtsp://h:80/a?b=c#d", "1ab", "1e5"],
    }


def test_types_are_made_of_plain_values() -> None:
    made = typed(Outer, {**GOOD, "maybe": None, "either": "s", "names": ["n"]}, "x")
    assert made == Outer(Inner((1.0, 2.5), (3, "x")), "a", {"n": 1}, None, "s", False, ["n"])
    assert all(type(value) is float for value in made.inner.values)


@pytest.mark.parametrize(
    "change",
    [
        {"inner": None},
        {"inner": []},
        {"inner": {"values": [1]}},
        {"inner": {"values": "12", "pair": [3, "x"]}},
        {"inner": {"values": [True], "pair": [3, "x"]}},
        {"inner": {"values": [float("nan")], "pair": [3, "x"]}},
        {"inner": {"values": [10**400], "pair": [3, "x"]}},
        {"inner": {"values": [], "pair": [3]}},
        {"inner": {"values": [], "pair": [3.0, "x"]}},
        {"inner": {"values": [], "pair": [3, 4]}},
        {"kind": "c"},
        {"kind": []},
        {"kind": {}},
        {"counts": {"n": True}},
        {"counts": {"n": 1 << 70}},
        {"counts": [1]},
        {"maybe": 3},
        {"either": 1.5},
        {"either": None},
        {"flag": 1},
        {"names": "n"},
        {"names": [1]},
        {"other": 1},
        {"innr": {}},
    ],
)
def test_a_wrong_part_is_one_error_of_the_asked_type(change: dict[str, Any]) -> None:
    with pytest.raises(RigError) as caught:
        typed(Outer, {**GOOD, **change}, "x", error=RigError)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("value", [None, 3, "text", [GOOD], {}])
def test_a_document_of_another_kind_is_an_error(value: object) -> None:
    with pytest.raises(InputError):
        typed(Outer, value, "")
