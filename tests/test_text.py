"""Text from outside: credentials are hidden whatever they are written like, and a terminal obeys nothing of it."""

from __future__ import annotations

import pytest

from refusion_edge.text import printable, redact, secrets_in
from tests.fakes.secret_names import SECRET


def test_there_are_enough_forms() -> None:
    assert len(SECRET) >= 90


@pytest.mark.parametrize("text", SECRET)
def test_no_secret_is_shown(text: str) -> None:
    shown = redact(text)
    assert "SeCr3t" not in shown
    assert redact(shown) == shown
    assert any("SeCr3t" in secret for secret in secrets_in(text))


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://cam.local:554/live/1", "test://ir?width=160&height=120&rate=9.5", "null://?delay_ms=300", "view://127.0.0.1:8080",
        "rtsp://@:8554/fused", "v4l2:///dev/video0?format=y16&width=640", "out/f_%04i.png", "file://a%20b.mkv", "/data/x.mkv",
        "gst:videotestsrc num-buffers=10 ! video/x-raw,width=64,height=48", "test://ir?dx=-3", "test://ir", "C:/x.mkv",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert secrets_in(text) == ()


def test_what_helps_stays() -> None:
    assert redact("rtsp://admin:pw@cam.local:554/live") == "rtsp://***@cam.local:554/live"
    assert redact("http://h/x?token=abc&rate=9") == "http://h/x?token=***&rate=***"


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "a\rb", "\x9b2J", "\u202eabc", "\ud800", "\x00", "\u2028"])
def test_nothing_unprintable_is_left(text: str) -> None:
    assert printable(text).isprintable()
    assert "\\" in printable(text)


def test_long_text_keeps_both_ends() -> None:
    shown = printable("a" + "x" * 10_000 + "z")
    assert (len(shown), shown[0], shown[-1]) == (200, "a", "z")
    assert printable("ä b" * 60) == "ä b" * 60
