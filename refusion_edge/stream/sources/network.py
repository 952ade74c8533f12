"""Network addresses: whether one names a file or a camera, and why it cannot be opened."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

import av

from refusion_edge.errors import SourceLostError, UsageError
from refusion_edge.images.io import VIDEO_SUFFIXES
from refusion_edge.stream.uri import Uri

OPEN_S, READ_S = 15.0, 5.0


def is_file(uri: Uri) -> bool:
    """Whether an HTTP address names a file: by its suffix, or by a length in the answer to a request of its header.

    Other schemes name cameras.
    """
    parts = urlsplit(uri.address)
    if parts.scheme not in ("http", "https"):
        return False
    if any(parts.path.lower().endswith(suffix) for suffix in VIDEO_SUFFIXES):
        return True
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(plain, method="HEAD", headers={"User-Agent": "refusion-edge"})
    try:
        with urllib.request.urlopen(request, timeout=READ_S) as answer:
            kind = answer.headers.get_content_type()
            return answer.headers.get("Content-Length", "0") != "0" and kind.partition("/")[0] in ("video", "application")
    except (OSError, ValueError):
        return False


def check_port(uri: Uri) -> None:
    """Require a port from 0 to 65535.

    Raises:
        UsageError: It is none.
    """
    try:
        _ = urlsplit(uri.address).port
    except ValueError:
        raise UsageError(f"the port in {uri} is not a number from 0 to 65535", "correct it") from None


def open_error(uri: Uri, error: Exception) -> SourceLostError:
    """Make the error for an address that FFmpeg could not open, by looking for the reason, now that it failed.

    Looking before would be one more client, and there are cameras and servers that take a single one.
    """
    parts = urlsplit(uri.address)
    codes: dict[type[Exception], int] = {
        av.HTTPUnauthorizedError: 401, av.HTTPForbiddenError: 403, av.HTTPNotFoundError: 404,
    }  # fmt: skip
    code = codes.get(type(error))
    if code == 404:
        problem, remedy = f"the server knows no stream at {uri} (404 not found)", "check the path"
    elif code is not None and parts.username:
        problem, remedy = f"{uri} does not accept the user and the password ({code})", "correct them"
    elif code is not None:
        problem, remedy = f"{uri} asks for a user and a password ({code})", f"write {uri.scheme}://USER:PASSWORD@..."
    elif isinstance(error, (av.ExitError, av.TimeoutError)):
        problem, remedy = f"{uri} did not answer within {OPEN_S:g} s", "check the network"
    elif not _resolves(parts.hostname or ""):
        problem, remedy = f"the host of {uri} is unknown", "check its name"
    elif isinstance(error, av.InvalidDataError):
        problem, remedy = f"{uri} answers, but sends no video that can be read", "check the path"
    else:
        reason = uri.hide(getattr(error, "strerror", None) or type(error).__name__).lower()
        problem, remedy = f"cannot open {uri}: {reason}", "check the address and the port, and close other programs that use it"
    return SourceLostError(problem, remedy, got=code)


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False
