"""Untrusted text made safe to show: credentials redacted, control characters escaped."""

from __future__ import annotations

import re
from collections.abc import Callable

HIDDEN = "***"

_SHOWN = 200
# Names of secrets in options, GStreamer properties and header fields.
_SECRET_NAME = r"[\w.-]*(?:user|pw|pass|pwd|psw|token|key|secret|auth|sig|session|cookie|cred|header|login|account|pin)[\w.-]*"
_NAMED = re.compile(rf"""(?ix) (?<![\w.-]) ({_SECRET_NAME}) (\s*[=:]\s*) ("(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | [^\s&!;]+)""")
_QUOTED_OR_WORD = re.compile(r"""(=\s*)("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s!"']+)""")
_ADDRESS = re.compile(r"(?is)([a-z][a-z0-9+.-]*)://(.*)")
_WITHOUT_SCHEME = re.compile(r"(?s)^[^/\s]*:[^@]*@|^[a-z]+:/?[^/@]+:.*@")
# Options of our own sources and outputs are numbers, or the name of a pixel format.
_PLAIN_OPTION = re.compile(r"(?i)(?!_)([a-z_]+)=(-?\d+(?:\.\d+)?|auto|y16|split16)?$")
_LOCAL = ("csi", "v4l2", "file", "test", "display", "view", "shm", "null")


def printable(text: str, most: int = _SHOWN) -> str:
    """Escape all non-printable characters, including line breaks, and shorten a long text in the middle.

    Args:
        text: Any text, such as a name in a file.
        most: Maximum length of the result, at least 8 characters.
    """
    plain = escaped(text)
    if len(plain) <= most:
        return plain
    tail = (most - 3) // 3
    return f"{plain[: most - 3 - tail]}...{plain[len(plain) - tail :]}"


def escaped(text: str) -> str:
    """Escape all non-printable characters, including line breaks."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def redact(text: str) -> str:
    """Replace every possible secret in the name of a source or an output with ``***``.

    This hides everything between ``://`` and the last ``@``; in network addresses also all query values, all values in the
    path, and fragments; in pipelines (``gst:``) the values of properties whose names suggest credentials, and the same parts
    of every address. It also works on messages of other programs, where it hides too much rather than too little.
    """
    return _redact(text, lambda _secret: HIDDEN)


def secrets_in(text: str) -> tuple[str, ...]:
    """List the parts that ``redact`` hides, longest first, so that they can be hidden in the output of other programs."""
    found: set[str] = set()

    def keep(secret: str) -> str:
        found.update(part for part in (secret, *re.split(r"[:@&=\s\"',;/?#]", secret)) if len(part) > 2)
        return HIDDEN

    _redact(text, keep)
    return tuple(sorted(found, key=len, reverse=True))


Hide = Callable[[str], str]


def _redact(text: str, hide: Hide) -> str:
    if text.startswith("gst:") or " ! " in text:
        return _pipeline(text, hide)
    address = _ADDRESS.search(text)
    if address is None:
        text = _WITHOUT_SCHEME.sub(lambda match: f"{hide(match[0][:-1])}@", text)
        return _named(text, hide)
    before = _named(text[: address.start()], hide)
    return f"{before}{address[1]}://{_rest(address[1].lower(), address[2], hide)}"


def _named(text: str, hide: Hide) -> str:
    return _NAMED.sub(lambda match: f"{match[1]}{match[2]}{hide(match[3])}", text)


def _rest(scheme: str, rest: str, hide: Hide) -> str:
    """Redact the part after ``://``."""
    credentials, at, place = rest.rpartition("@")
    if credentials:
        if re.search(r"[?#=&]", credentials):
            # The last @ may belong to a password with such a character, or to a query after the host: show nothing.
            return hide(rest)
        return f"{hide(credentials)}@{_rest(scheme, place, hide)}"
    place, mark, query = place.partition("?")
    if scheme in _LOCAL:
        shown = [part if _is_plain(part) else _value(part, hide) for part in query.split("&")]
        return f"{at}{place}{mark}{'&'.join(shown)}"
    place, sharp, fragment = place.partition("#")
    path = re.sub(r"=(.+)", lambda match: f"={hide(match[1])}", place, flags=re.DOTALL)
    shown = [_value(part, hide) for part in query.split("&")] if mark else []
    return f"{at}{path}{sharp}{hide(fragment) if fragment else ''}{mark}{'&'.join(shown)}"


def _is_plain(option: str) -> bool:
    match = _PLAIN_OPTION.match(option)
    return match is not None and not re.fullmatch(_SECRET_NAME, match[1], re.IGNORECASE)


def _value(option: str, hide: Hide) -> str:
    """Redact the value of one query parameter, but keep its name."""
    name, equals, value = option.partition("=")
    if not equals:
        return hide(name) if name else ""
    return f"{name}={hide(value)}" if value else option


def _pipeline(text: str, hide: Hide) -> str:
    def address(match: re.Match[str]) -> str:
        value = match[2]
        quote = value[0] if value[0] in "\"'" else ""
        inner = value[1:-1] if quote else value
        if "://" not in inner and "@" not in inner:
            return match[0]
        return f"{match[1]}{quote}{_redact(inner.replace(' ! ', '!'), hide)}{quote}"

    return _named(_QUOTED_OR_WORD.sub(address, text), hide)
