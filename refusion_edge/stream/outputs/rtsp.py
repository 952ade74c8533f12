"""RTSP output through GStreamer's RTSP server, which runs under the system's Python.

The server (``rtsp_server.py``) reads raw frames from a pipe, see ``system_python``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.errors import OutputError, UsageError
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.outputs.sinks import as_bgr
from refusion_edge.stream.system_python import PACKAGES, NotReadyError, Program, end, send, start_ready
from refusion_edge.stream.uri import LOOPBACK, Uri, host_and_port

_PACKAGES = f"{PACKAGES} gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-ugly"
_DEFAULT_PORT = 8554
_START_S = 15.0
_PORT_IN_USE = 4


class RtspSink:
    """Serves the fused frames as H.264 over RTSP. Implements ``Sink``.

    Args:
        uri: ``rtsp://[USER:PASSWORD@][HOST]:PORT/PATH``; the default host is 127.0.0.1, the default port 8554. If the address
            can be reached from other machines and has no credentials, a user and a password are generated and announced.
        rate_hz: Nominal frames per second.
        announce: Called with the address of the stream.
    """

    capacity, lossless = 1, False

    def __init__(self, uri: Uri, *, rate_hz: float | None, announce: Callable[[str], object] = lambda _text: None) -> None:
        self.name = str(uri)
        self._host, self._port = host_and_port(uri, "127.0.0.1", _DEFAULT_PORT)
        parts = urlsplit(uri.text)
        self._path = parts.path if len(parts.path) > 1 else "/fused"
        self._credentials = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        if self._credentials is not None and not all(self._credentials):
            raise UsageError(f"{uri} names a user without a password", "write rtsp://USER:PASSWORD@HOST:PORT/PATH")
        # As with the browser view, viewers on other machines need credentials.
        self._made_up = self._credentials is None and self._host not in LOOPBACK
        if self._made_up:
            self._credentials = ("viewer", secrets.token_urlsafe(16))
        self._rate_hz = max(1, round(rate_hz or 30))
        self._announce = announce
        self._process: Program | None = None
        self._size_wh = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            end(self._process)
            self._process = None

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``; the first frame starts the server, which needs the frame size."""
        image = as_bgr(frame.image)
        # H.264 in 4:2:0 has even sides.
        even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        if self._process is None:
            self._size_wh = (even.shape[1], even.shape[0])
            self._process = self._start()
        if (even.shape[1], even.shape[0]) != self._size_wh:
            even = cv2.resize(even, self._size_wh, interpolation=cv2.INTER_AREA)
        try:
            send(self._process, np.ascontiguousarray(even).data)
        except OSError as error:
            code = end(self._process)
            self._process = None
            raise OutputError(f"the RTSP server of {self.name} ended with code {code}", "start the stream again") from error

    def _start(self) -> Program:
        words = [self._host, str(self._port), self._path, *map(str, self._size_wh), str(self._rate_hz)]
        variables: dict[str, str] = {}
        if self._credentials is not None:
            variables["REFUSION_EDGE_RTSP_USER"], variables["REFUSION_EDGE_RTSP_PASSWORD"] = self._credentials
        try:
            process = start_ready(
                "outputs/rtsp_server.py", words, variables, name=self.name, bindings="GStreamer's RTSP server",
                packages=_PACKAGES, within_s=_START_S,
            )  # fmt: skip
        except NotReadyError as failed:
            if failed.code == _PORT_IN_USE:
                problem, remedy = f"cannot serve {self.name}: port {self._port} is in use", "choose another port"
                raise OutputError(problem, remedy) from failed
            raise OutputError(
                f"the RTSP server of {self.name} did not start within {_START_S:g} s ({failed.answer})", "try again"
            ) from failed
        shown = ":".join(self._credentials) + "@" if self._made_up and self._credentials else ""
        self._announce(f"RTSP stream: rtsp://{shown}{self._host}:{self._port}{self._path}")
        return process
