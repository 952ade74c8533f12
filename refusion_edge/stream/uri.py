"""Names of sources and outputs: reading them, and showing them without their credentials."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from refusion_edge.errors import UsageError
from refusion_edge.text import HIDDEN, printable, redact, secrets_in

SOURCE_SCHEMES = ("csi", "v4l2", "rtsp", "rtsps", "http", "https", "file", "gst", "test")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OUTPUT_SCHEMES = ("display", "file", "view", "rtsp", "shm", "null")

_PATTERN = re.compile(r"%0?\d*d")


@dataclass(frozen=True, slots=True)
class Uri:
    """A source or an output.

    Attributes:
        scheme: One of the known schemes; ``file`` where none was written.
        target: What comes after the scheme, without the options: a path, an address, a pipeline.
        options: What comes after the question mark; empty for addresses of the network, which keep theirs in ``target``.
        text: As it was written. Never printed; print ``str(uri)``.
    """

    scheme: str
    target: str
    options: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __str__(self) -> str:
        return printable(redact(self.text))

    __repr__ = __str__

    def hide(self, text: str) -> str:
        """Hide this name's secrets in a text that another program made of it."""
        for secret in secrets_in(self.text):
            text = text.replace(secret, HIDDEN)
        return printable(redact(text))

    @property
    def path(self) -> Path:
        """The target as a path of the file system."""
        return Path(self.target)


def parse_source(text: str) -> Uri:
    """Read the name of a source.

    Args:
        text: ``csi://0``, ``v4l2:///dev/video0`` or ``/dev/video0``, ``rtsp://...``, ``file://clip.mkv``, a file, a
            folder, a pattern such as ``frame_%04i.png``, ``gst:`` and a pipeline, or ``test://ir?rate=9``.

    Raises:
        UsageError: The scheme is unknown; the message suggests the nearest one.
    """
    if text.startswith("/dev/video"):
        text = f"v4l2://{text}"
    return _parse(text, SOURCE_SCHEMES, "a source")


def parse_output(text: str) -> Uri:
    """Read the name of an output.

    Args:
        text: ``display://0``, a video file, a folder, a pattern such as ``frame_%04i.png``, ``view://127.0.0.1:8080``,
            ``rtsp://@:8554/fused``, ``shm://name`` or ``null://``.

    Raises:
        UsageError: The scheme is unknown; the message suggests the nearest one.
    """
    return _parse(text, OUTPUT_SCHEMES, "an output")


def frame_pattern(path: str) -> str | None:
    """Turn the ``%04i`` of a file pattern into Python's ``%04d``; None if there is no such field."""
    name = re.sub(r"%(0?\d*)i", r"%\1d", path)
    return name if _PATTERN.search(name) else None


def read_options(uri: Uri, known: Sequence[str]) -> dict[str, str]:
    """Give the options of a URI after making sure that all of them are known.

    Raises:
        UsageError: One is not; the message suggests the nearest one.
    """
    for name in uri.options:
        if name not in known:
            raise UsageError(
                f"expected one of the options {', '.join(known)} in {uri}, got '{printable(name)}'{_nearest(name, known)}."
            )
    return uri.options


def number_option(uri: Uri, name: str, default: float, *, least: float, most: float) -> float:
    """Read a number among the options of a URI.

    Raises:
        UsageError: It is no number or out of range.
    """
    text = uri.options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise UsageError(f"expected {name} from {least:g} to {most:g} in {uri}, got '{printable(text)}'; correct the number.")
    return value


def _parse(text: str, schemes: Sequence[str], what: str) -> Uri:
    if not text or "\0" in text:
        raise UsageError(f"expected {what}, got an empty or unusable name; give a file, a folder or SCHEME://...")
    if text.startswith("gst:") and "gst" in schemes:
        return Uri("gst", text.removeprefix("gst:").removeprefix("//"), {}, text)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Uri("file", text, {}, text)
    scheme = scheme.lower()
    if scheme not in schemes:
        raise UsageError(
            f"expected {what} as one of {', '.join(f'{name}://' for name in schemes)}, a file or a folder, got "
            f"'{printable(redact(text))}'{_nearest(scheme, schemes, suffix='://')}."
        )
    if scheme in ("rtsp", "rtsps", "http", "https"):
        return Uri(scheme, text, {}, text)
    rest = text[len(scheme) + 3 :]
    target, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    return Uri(scheme, unquote(target) if scheme == "file" and frame_pattern(target) is None else target, options, text)


def host_and_port(uri: Uri, default_host: str, default_port: int) -> tuple[str, int]:
    """Read ``host:port`` of an output that listens; ``@`` or nothing as host means the default.

    Raises:
        UsageError: The port is no number from 0 to 65535.
    """
    parts = urlsplit(uri.text)
    try:
        port = parts.port
    except ValueError:
        raise UsageError(f"expected a port from 0 to 65535 in {uri}, got another text; correct it.") from None
    return parts.hostname or default_host, default_port if port is None else port


def _nearest(word: str, known: Sequence[str], *, suffix: str = "") -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (did you mean '{nearest[0]}{suffix}'?)" if nearest else ""
