"""Fused frames in a window."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any

import cv2
from typing_extensions import Self

from refusion_edge.errors import BackendError
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.uri import Uri, read_options

_X11_PORT = 6000


class DisplaySink:
    """Shows frames in a window; closing it, or pressing q or Esc, ends the run. Implements ``Sink``."""

    capacity, lossless = 1, False
    _TITLE = "refusion-edge"

    def __init__(self, uri: Uri, stop: threading.Event) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._stop = stop
        self._open = False

    def __enter__(self) -> Self:
        if not has_display():
            raise BackendError(
                "cannot open a window for display://: no X server answers at DISPLAY", "use view:// and a browser"
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open:
            cv2.destroyAllWindows()
            self._open = False

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        self._open = True
        try:
            cv2.imshow(self._TITLE, frame.image)
            pressed = cv2.waitKey(1) & 0xFF
            closed = cv2.getWindowProperty(self._TITLE, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error as error:
            raise BackendError(f"this OpenCV cannot show windows ({error.err})", "use view:// and a browser") from error
        if pressed in (ord("q"), 27) or closed:
            self._stop.set()


def has_display() -> bool:
    """Whether a window can be shown, that is, whether the X server that DISPLAY names accepts connections.

    With a stale DISPLAY, as old sessions leave it behind, the window library would end the whole process.
    """
    host, colon, screen = os.environ.get("DISPLAY", "").rpartition(":")
    number = screen.partition(".")[0]
    if not colon or not number.isdecimal():
        return False
    local = host in ("", "unix")
    places: list[tuple[socket.AddressFamily, Any]] = (
        [(socket.AF_UNIX, f"{prefix}/tmp/.X11-unix/X{number}") for prefix in ("", "\0")]
        if local
        else [(socket.AF_INET, (host, _X11_PORT + int(number)))]
    )
    for family, address in places:
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError, OverflowError):
            probe.settimeout(1.0)
            probe.connect(address)
            return True
    return False
