"""Unreadable sources, and the options of every source."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusion_edge.errors import InputError, RefusionError, SourceLostError, UsageError
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import (
    Source,
)
from refusion_edge.stream.uri import parse_source
from tests.conftest import one_sentence
from tests.raising import raises


def opened(text: str, side: str = "ir") -> Source:
    return open_source(parse_source(text), "ir" if side == "ir" else "vis")


def test_options_are_checked() -> None:
    for text in ("test://ir?ratee=9", "test://ir?rate=fast", "test://ir?rate=0", "test://vis", "file://x.mkv?format=y17"):
        with raises(UsageError, text.partition("?")[0]):
            opened(text)
    with raises(UsageError, "'ratee'", "'rate'", got="ratee"):
        opened("test://ir?ratee=9")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nothing.mkv", InputError),
        ("nothing/f_%04i.png", InputError),
        ("empty.mkv", InputError),
        ("text.mkv", InputError),
        ("/dev/video97", SourceLostError),
        ("rtsp://no-such-host.invalid/x", SourceLostError),
        ("rtsp://127.0.0.1:99999/x", UsageError),
    ],
)
def test_an_unreadable_source_is_one_line(text: str, error: type[RefusionError]) -> None:
    Path("empty.mkv").touch()
    Path("text.mkv").write_text("no video")
    with pytest.raises(error) as caught, opened(text):
        pass
    assert one_sentence(str(caught.value)), str(caught.value)
    assert caught.value.exit_code == {InputError: 4, SourceLostError: 5, UsageError: 2}[error]
