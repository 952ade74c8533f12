"""URIs of sources and outputs: parsing them, and printing them without their credentials."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from refusion_edge.errors import RigError, UsageError
from refusion_edge.images.io import VIDEO_SUFFIXES
from refusion_edge.text import HIDDEN, printable, redact, secrets_in

NETWORK_SCHEMES = ("rtsp", "rtsps", "http", "https")
SOURCE_SCHEMES = ("csi", "v4l2", *NETWORK_SCHEMES, "file", "gst", "test")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OUTPUT_SCHEMES = ("display", "file", "view", "rtsp", "gst", "shm", "null")

_PATTERN = re.compile(r"%0?\d*d")
# Elements of GStreamer that take frames away; by custom, their names end like this.
_SINK = re.compile(r"\b\w*sink\b", re.IGNORECASE)
_CAMERA_NUMBER = re.compile(r"(?:v4l2://)?(\d{1,2})(\?.*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Uri:
    """A source or an output.

    Attributes:
        scheme: One of the known schemes; ``file`` where none was written.
        target: The part after the scheme, without the options: a path, an address, a pipeline.
        options: The options after the question mark; empty for network addresses, whose query stays in ``target``.
        text: The URI as written, with its credentials; print ``str(uri)`` instead.
    """

    scheme: str
    target: str
    options: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __str__(self) -> str:
        return printable(redact(self.text))

    __repr__ = __str__

    def hide(self, text: str) -> str:
        """Hide the secrets of this URI in the output of another program."""
        for secret in secrets_in(self.text):
            text = text.replace(secret, HIDDEN)
        return printable(redact(text))

    def with_option(self, name: str, value: str) -> Uri:
        """The same URI with another option."""
        return replace(self, options={**self.options, name: value})

    @property
    def address(self) -> str:
        """The network address with its credentials, spaces and other special characters percent-encoded, as a URL has them.

        A password may be written as it is, with ``/ ? # @`` or spaces in it.
        """
        scheme, _, rest = self.text.partition("://")
        end = re.search(r"[/?#]|$", rest)
        authority = rest[: end.start()] if end else rest
        if "@" in authority:
            at = authority.rindex("@")
        elif re.match(r"[^/?#@\[]*:(?!\d*([/?#]|$))", rest) and "@" in rest:
            at = rest.rindex("@")
        else:
            return f"{scheme}://{_encoded(rest)}"
        user, colon, password = rest[:at].partition(":")
        return f"{scheme}://{_encoded(user, '')}{colon}{_encoded(password, '')}@{_encoded(rest[at + 1 :])}"

    @property
    def path(self) -> Path:
        """The target as a file system path."""
        return Path(self.target)


def parse_source(text: str) -> Uri:
    """Parse the URI of a source.

    Args:
        text: ``csi://0``, ``v4l2:///dev/video0``, ``/dev/video0``, ``/dev/v4l/by-id/...`` or ``0``, ``rtsp://...``,
            ``file://clip.mkv``, a file, a folder, a pattern such as ``frame_%04i.png``, ``gst:`` and a pipeline, or
            ``test://ir?rate=9``.

    Raises:
        UsageError: The scheme is unknown; the message suggests the nearest one.
    """
    number = _CAMERA_NUMBER.fullmatch(text)
    if number is not None and not Path(text).exists():
        text = f"v4l2:///dev/video{number[1]}{number[2] or ''}"
    elif text.startswith(("/dev/video", "/dev/v4l/")):
        text = f"v4l2://{text}"
    return _parse(text, SOURCE_SCHEMES, "a source")


def choose_source(given: str | None, stored: str | None, *, trusted: bool) -> Uri | None:
    """Choose between the source on the command line and the one in the rig file, which may come from a stranger.

    Args:
        given: URI on the command line, see ``parse_source``, or None.
        stored: URI in the rig, or None.
        trusted: Whether the user vouches for the rig.

    Returns:
        The source, or None if neither names one.

    Raises:
        UsageError: See ``parse_source``.
        RigError: The rig names a pipeline, which is code, and is not trusted, or the pipeline sends frames elsewhere.
    """
    if given is not None or stored is None:
        return None if given is None else parse_source(given)
    uri = parse_source(stored)
    if uri.scheme != "gst":
        return uri
    if not trusted:
        raise RigError(
            f"the rig takes frames from a GStreamer pipeline, which can run anything on this machine: {uri}",
            "if you know where the file comes from, repeat the command with --trust",
        )
    sink = _SINK.search(uri.target)
    if sink is not None:
        raise RigError(
            f"the pipeline of the rig sends frames elsewhere, to {printable(sink[0])}: {uri}",
            "take that element out, or give the pipeline on the command line",
            got=sink[0],
        )
    return uri


def is_source(text: str) -> bool:
    """Whether a name is that of a camera or a video, or a URI, rather than that of an image file, a folder or a pattern."""
    if _CAMERA_NUMBER.fullmatch(text):
        return not Path(text).exists()
    if "://" in text or text.startswith(("gst:", "/dev/video", "/dev/v4l/")):
        return True
    return Path(text).suffix.lower() in VIDEO_SUFFIXES


def parse_output(text: str) -> Uri:
    """Parse the URI of an output.

    Args:
        text: ``display://0``, a video file, a folder, a pattern such as ``frame_%04i.png``, ``view://127.0.0.1:8080``,
            ``rtsp://@:8554/fused``, ``gst:`` and a pipeline without its source, ``shm://name`` or ``null://``.

    Raises:
        UsageError: The scheme is unknown; the message suggests the nearest one.
    """
    return _parse(text, OUTPUT_SCHEMES, "an output")


def anchored(text: str, folder: Path) -> str:
    """Read a name of a source or an output as one in a folder: relative paths begin there, all other names stay the same.

    Args:
        text: See ``parse_source`` and ``parse_output``.
        folder: Where relative paths begin.
    """
    scheme, separator, rest = text.partition("://")
    if separator:
        if folder == Path() or scheme.lower() != "file":
            return text
        start = str(folder) if frame_pattern(rest) else quote(str(folder))
        return f"file://{os.path.join(start, rest)}"  # noqa: PTH118 - the rest has options, and is no path
    named = folder == Path() or text.startswith("gst:") or _CAMERA_NUMBER.fullmatch(text)
    return text if named else str(folder / text)


def frame_pattern(path: str) -> str | None:
    """Convert the ``%04i`` of a file pattern to Python's ``%04d``; None if the path has no such field."""
    name = re.sub(r"%(0?\d*)i", r"%\1d", path)
    return name if _PATTERN.search(name) else None


def read_options(uri: Uri, known: Sequence[str]) -> dict[str, str]:
    """Return the options of a URI, all of which must be known.

    Raises:
        UsageError: An option is unknown; the message suggests the nearest one.
    """
    for name in uri.options:
        if name not in known:
            raise UsageError(
                f"{uri} has an unknown option '{printable(name)}'{_nearest(name, known)}",
                _allowed(known),
                expected=tuple(known),
                got=name,
            )
    return uri.options


def number_option(uri: Uri, name: str, default: float, *, low: float, high: float) -> float:
    """Read a numeric option of a URI.

    Raises:
        UsageError: The value is not a number, or is out of range.
    """
    text = uri.options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(
            f"{name} in {uri} is '{printable(text)}'", f"give a number from {low:g} to {high:g}", expected=(low, high), got=text
        )
    return value


def _encoded(text: str, safe: str = "/?#@:&=+$,;!*'()[]~") -> str:
    """Percent-encode all but ``safe`` characters and what is percent-encoded already."""
    return quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text), safe=f"%{safe}")


def _parse(text: str, schemes: Sequence[str], what: str) -> Uri:
    if not text or "\0" in text:
        raise _unusable(what)
    if text.startswith("gst:") and "gst" in schemes:
        return Uri("gst", text.removeprefix("gst:").removeprefix("//"), {}, text)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Uri("file", text, {}, text)
    scheme = scheme.lower()
    if scheme not in schemes:
        raise UsageError(
            f"'{printable(redact(text))}' cannot be {what}{_nearest(scheme, schemes, suffix='://')}",
            f"give a file, a folder or one of {', '.join(f'{name}://' for name in schemes)}",
        )
    if scheme in NETWORK_SCHEMES:
        return Uri(scheme, text, {}, text)
    rest = text[len(scheme) + 3 :]
    target, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme == "file" and frame_pattern(target) is None:
        target = unquote(target)
        if "\0" in target:
            raise _unusable(what)
    return Uri(scheme, target, options, text)


def _unusable(what: str) -> UsageError:
    return UsageError(f"the name of {what} is empty or holds a zero byte", "give a file, a folder or SCHEME://...")


def host_and_port(uri: Uri, default_host: str, default_port: int) -> tuple[str, int]:
    """Read the ``host:port`` that an output listens on; ``@`` or an empty host means the default.

    Raises:
        UsageError: The port is not a number from 0 to 65535.
    """
    parts = urlsplit(uri.text)
    try:
        port = parts.port
    except ValueError:
        raise UsageError(f"the port in {uri} is not a number from 0 to 65535", "correct it") from None
    return parts.hostname or default_host, default_port if port is None else port


def _allowed(known: Sequence[str]) -> str:
    return f"choose one of {', '.join(known)}" if known else "it takes none"


def _nearest(word: str, known: Sequence[str], *, suffix: str = "") -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (did you mean '{nearest[0]}{suffix}'?)" if nearest else ""
