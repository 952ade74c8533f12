"""Network cameras in this process: RTSP with H.264, and HTTP with Motion JPEG or a file."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av

from refusion_edge.arrays import Array

_SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=control:track1
"""


def encode_h264(frames: list[Array], keyframe_interval: int) -> list[list[bytes]]:
    """Encode (H, W, 3) BGR frames; returns the NAL units of each, small enough for one RTP packet."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.options = {
        "tune": "zerolatency",
        "preset": "ultrafast",
        "x264-params": f"slice-max-size=1200:keyint={keyframe_interval}",
    }
    packets = [packet for image in frames for packet in encoder.encode(av.VideoFrame.from_ndarray(image, format="bgr24"))]
    return [[unit for unit in re.split(b"\0\0\0?\1", bytes(packet)) if unit] for packet in packets]


class RtspCamera:
    """Serves one stream over TCP, to one client at a time: stamped at 25 frames per second, and sent at ``period_s``.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        requests: Methods of the requests so far.
        paths: Addresses in the requests so far.
    """

    def __init__(
        self,
        frames: list[Array],
        *,
        status: str = "200 OK",
        silent: bool = False,
        keyframe_interval: int = 10,
        period_s: float = 0.04,
    ) -> None:
        self._period_s = period_s
        self.requests: list[str] = []
        self.paths: list[str] = []
        self._units = encode_h264(frames, keyframe_interval) if frames else []
        self._status, self._silent = status, silent
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> RtspCamera:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while not self._stop.is_set():
            while b"\r\n\r\n" not in data:
                part = connection.recv(4096)
                if not part:
                    return
                data += part
            head, _, data = data.partition(b"\r\n\r\n")
            method, path, _ = head.decode().splitlines()[0].split()
            self.requests.append(method)
            self.paths.append(path)
            number = re.search(rb"(?i)cseq: *(\d+)", head)
            assert number is not None
            status = self._status if method == "DESCRIBE" else "200 OK"
            body = _SDP if method == "DESCRIBE" and status == "200 OK" else ""
            extra = {
                "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Base: {path}/\r\nContent-Length: {len(body)}\r\n",
                "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
                "PLAY": "Session: 1\r\n",
            }.get(method, "")
            connection.sendall(f"RTSP/1.0 {status}\r\nCSeq: {number[1].decode()}\r\n{extra}\r\n{body}".encode())
            if method == "PLAY":
                self._play(connection)
                return

    def _play(self, connection: socket.socket) -> None:
        sequence = 0
        for number, units in enumerate(self._units):
            for unit in units:
                marker = 0x80 if unit is units[-1] else 0
                packet = struct.pack(">BBHII", 0x80, 96 | marker, sequence, number * 3600, 1) + unit
                connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                sequence += 1
            if self._stop.wait(self._period_s):
                return
        while self._silent and not self._stop.wait(0.1):
            pass


@contextlib.contextmanager
def http_camera(images: list[bytes]) -> Iterator[str]:
    """Serve JPEG images as Motion JPEG, over and over."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                for image in images * 100:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                    self.wfile.write(head.encode() + image + b"\r\n")
                    threading.Event().wait(0.02)

        def log_message(self, *_words: object) -> None:
            pass

    with _serving(Handler) as address:
        yield f"{address}/stream"


@contextlib.contextmanager
def http_file(data: bytes, kind: str = "video/mp4") -> Iterator[str]:
    """Serve a file in parts, as web servers do."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body:
                with contextlib.suppress(OSError):
                    self.wfile.write(data[start:])

        def log_message(self, *_words: object) -> None:
            pass

    with _serving(Handler) as address:
        yield address


@contextlib.contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
