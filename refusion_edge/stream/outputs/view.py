"""The browser view: a page with both cameras, the fused frame and live figures, and endpoints for monitoring.

The server runs in its own thread. Frames are encoded once, and only while there are viewers. Each viewer gets the newest frame
after it has received the previous one, so slow viewers never make the pipeline wait.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import BackendError, InputError, OutputError, StreamError, UsageError
from refusion_edge.files import read_file
from refusion_edge.machine import require
from refusion_edge.rig.model import POLARITIES
from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs.connections import LIMITS, Connections, Limits
from refusion_edge.stream.outputs.prometheus import CONTENT_TYPE, RigFigures, to_prometheus
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import LOOPBACK, Uri, host_and_port, read_options
from refusion_edge.text import printable, redact

IMAGES = ("fused", "ir", "vis")
DEFAULT_RIG = "default"
"""Name of the rig in figures where there is only one."""
HEALTH = ("/healthz", "/readyz")
"""What an orchestrator asks: whether to restart the stream, and whether it fuses frames. Open to all, as it cannot log in."""

_DEFAULT_PORT = 8080
_MAX_VIEWERS = 64
_JPEG_QUALITY = 82
_FIGURES_EVERY_S = 0.5
_START_S = _STOP_S = 5.0
_MAX_WAITING_S = 10.0
_KEPT_ALIVE_S = 15.0
_MOST_PEM_BYTES = 1 << 20
_COOKIE = "refusion_edge_token"
_PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class ViewSink:
    """Serves the stream to browsers. Implements ``Sink``.

    ``/`` is the page, ``/ws`` its WebSocket, ``/fused.mjpg`` a plain Motion JPEG, ``/status.json`` the report so far,
    ``/metrics`` the same figures for Prometheus, and ``/healthz`` and ``/readyz`` say whether the stream works.

    Args:
        uri: ``view://HOST:PORT``; the default is 127.0.0.1:8080, and port 0 means any free port.
        statistics: Figures to show.
        gain: Its polarity can be switched from the page.
        token: Token that viewers have to present; if None, it is generated for an address that other machines can reach.
        allow_origins: Addresses, such as ``https://cameras.example``, under which a reverse proxy shows the page.
        announce: Called with the address of the page.
        limits: Limits of its connections.
        tls: Files of a certificate, with its chain, and of its key, in PEM; None for plain HTTP.

    Raises:
        UsageError: An allowed address is none, or has a path.
        InputError: Certificate and key cannot be used.

    Attributes:
        address: Host and port that are bound, after it was entered.
    """

    capacity, lossless = 1, False

    def __init__(
        self,
        uri: Uri,
        statistics: Statistics,
        gain: ThermalGain,
        *,
        token: str | None = None,
        allow_origins: Sequence[str] = (),
        announce: Callable[[str], object] = lambda _text: None,
        limits: Limits = LIMITS,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._host, self._port = host_and_port(uri, "127.0.0.1", _DEFAULT_PORT)
        self._local = self._host in LOOPBACK
        self._origins = frozenset(_origin(text) for text in allow_origins)
        self._token = token or (None if self._local else secrets.token_urlsafe(16))
        self._announce = announce
        self._statistics, self._gain = statistics, gain
        self._web = require("aiohttp.web", "stream", "the browser view")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready, self._stopped = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._wanted: dict[int, frozenset[str]] = {}
        self._parts: dict[str, bytes] = {}
        self._header: dict[str, Any] = {}
        self._news = asyncio.Condition()
        self._number = 0
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._figures: dict[str, Any] = {}
        self._figures_s = 0.0
        self._tls = None if tls is None else _tls_context(*tls)
        self._connections = Connections(limits, self._tls)
        self.address = (self._host, self._port)

    def __enter__(self) -> Self:
        listening = self._bind()
        self.address = listening.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(self._loop, listening), name="view", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_S) or self._failure is not None:
            self.__exit__(None, None, None)
            raise StreamError(
                f"the browser view did not start within {_START_S:g} s ({self._failure or 'no answer'})", "try again"
            )
        host = f"[{self.address[0]}]" if ":" in self.address[0] else self.address[0]
        token = f"/?token={self._token}" if self._token else "/"
        scheme = "http" if self._tls is None else "https"
        self._announce(f"browser view: {scheme}://{host}:{self.address[1]}{token}")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None and self._loop is not None:
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._spawn, self._stop())
            self._thread.join(_STOP_S)

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``; returns at once while there are no viewers."""
        wanted = frozenset().union(*self._wanted.copy().values())
        if not wanted:
            return
        parts = {name: _jpeg(image) for name in wanted if (image := _image(frame, name)) is not None}
        header = {
            "number": frame.number,
            "time_ns": frame.time_ns,
            "mode": frame.mode,
            "marks": list(frame.marks),
            "skew_ms": None if frame.skew_ns is None else frame.skew_ns / MS,
            "width": frame.image.shape[1],
            "height": frame.image.shape[0],
            "polarity": self._gain.polarity,
            "figures": self._current_figures(),
        }
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._spawn, self._publish(header, parts))

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self._host, self._port))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                raise OutputError(
                    f"cannot serve the browser view: port {self._port} is in use",
                    f"choose another with -o view://{self._host}:{self._port + 1}",
                ) from error
            raise OutputError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}", "choose another address"
            ) from error
        except (UnicodeError, OverflowError) as error:
            listening.close()
            raise UsageError(f"{self.name} does not name an address of this machine", "correct it") from error
        return listening

    # In the server thread

    def _serve(self, loop: asyncio.AbstractEventLoop, listening: socket.socket) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._run(listening))
        except Exception as error:
            self._failure = error
            self._ready.set()
        finally:
            listening.close()
            loop.close()

    async def _run(self, listening: socket.socket) -> None:
        web = self._web

        async def guard(request: Any, handler: Any) -> Any:
            return await self._guard(request, handler)

        application = web.Application(middlewares=[web.middleware(guard)])
        for path in _PAGE_FILES:
            application.router.add_get(path, self._file)
        application.router.add_get("/ws", self._socket)
        application.router.add_get("/fused.mjpg", self._motion_jpeg)
        application.router.add_get("/status.json", self._status)
        application.router.add_get("/metrics", self._prometheus)
        for path in HEALTH:
            application.router.add_get(path, self._healthy)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, keepalive_timeout=_KEPT_ALIVE_S)
        await runner.setup()
        accepting = asyncio.create_task(self._connections.accept(listening, runner.server))
        self._ready.set()
        async with self._news:
            await self._news.wait_for(lambda: self._ending)
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        self._connections.close()
        listening.close()
        await runner.cleanup()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        # A task without a reference may be collected before it runs.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        self._ending = True
        await self._wake()

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _publish(self, header: dict[str, Any], parts: dict[str, bytes]) -> None:
        self._header, self._parts = header, parts
        self._number += 1
        await self._wake()

    async def _next(self, seen: int) -> int:
        async with self._news:
            await self._news.wait_for(lambda: self._number > seen or self._ending)
        return self._number

    async def _guard(self, request: Any, handler: Any) -> Any:
        """Authorize a request: it needs the token, if there is one, and must not come from another site's page.

        The names in ``Host`` and, behind a proxy, in ``X-Forwarded-Host`` have to be this machine's or allowed ones: the page
        of an attacker whose name is made to resolve to this machine or to the proxy has another one.
        """
        web = self._web
        try:
            host = request.url.host
        except ValueError:
            raise web.HTTPBadRequest(text="the port of this address is not valid\n") from None
        allowed = LOOPBACK | {urlsplit(origin).hostname for origin in self._origins}
        forwarded = request.headers.get("X-Forwarded-Host")
        if self._local and (host not in allowed or (forwarded is not None and _host_name(forwarded) not in allowed)):
            raise web.HTTPForbidden(
                text="this view is bound to this machine only; open it as http://127.0.0.1, or start it with --allow-origin\n"
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host and origin.lower() not in self._origins:
            raise web.HTTPForbidden(text="this view cannot be used from another site; see --allow-origin\n")
        if request.path in HEALTH:
            return await handler(request)
        given = self._given_token(request).encode(errors="replace")  # a header may hold bytes that are not valid text
        if self._token is not None and not hmac.compare_digest(given, self._token.encode()):
            raise web.HTTPUnauthorized(
                text="this view needs the token that the stream printed: add ?token=... to the address\n"
            )
        self._connections.authorize(request.transport)
        response = await handler(request)
        if self._token is not None and "token" in request.query and not response.prepared:
            response.set_cookie(_COOKIE, self._token, httponly=True, samesite="Strict", secure=self._tls is not None)
        return response

    def _given_token(self, request: Any) -> str:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return str(request.query.get("token") or bearer or request.cookies.get(_COOKIE, ""))

    async def _file(self, request: Any) -> Any:
        name, kind = _PAGE_FILES[request.path]
        text = resources.files("refusion_edge.stream.outputs").joinpath("page", name).read_text("utf-8")
        return self._web.Response(text=text, content_type=kind, headers=_HEADERS)

    async def _status(self, _request: Any) -> Any:
        snapshot = await asyncio.to_thread(self._statistics.snapshot)
        return self._web.json_response(
            {"schema": "refusion-edge/stream-status/1", "viewers": len(self._wanted), **snapshot}, headers=_HEADERS
        )

    async def _prometheus(self, _request: Any) -> Any:
        snapshot = await asyncio.to_thread(self._statistics.snapshot)
        text = to_prometheus([RigFigures(DEFAULT_RIG, snapshot, len(self._wanted))])
        return self._web.Response(body=text.encode(), headers={**_HEADERS, "Content-Type": CONTENT_TYPE})

    async def _healthy(self, request: Any) -> Any:
        health = self._statistics.health()
        good = health.ready if request.path == "/readyz" else health.alive
        return self._web.json_response({"ok": good, "reason": health.reason}, status=200 if good else 503, headers=_HEADERS)

    async def _socket(self, request: Any) -> Any:
        self._check_room()
        answer = self._web.WebSocketResponse(heartbeat=10.0, max_msg_size=4096, compress=False)
        await answer.prepare(request)
        viewer = id(answer)
        self._wanted[viewer] = frozenset({"fused"})
        sender = asyncio.create_task(self._send_images(answer, viewer))
        try:
            async for message in answer:
                if message.type == self._web.WSMsgType.TEXT:
                    self._obey(viewer, message.data)
        finally:
            del self._wanted[viewer]
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return answer

    async def _send_images(self, answer: Any, viewer: int) -> None:
        seen = self._number
        while not answer.closed:
            seen = await self._next(seen)
            if self._ending:
                await answer.close(message=b"the stream has ended")
                return
            names = [name for name in IMAGES if name in self._wanted[viewer] and name in self._parts]
            header = {**self._header, "images": {name: len(self._parts[name]) for name in names}}
            text = json.dumps(header, allow_nan=False).encode()
            await answer.send_bytes(b"".join((struct.pack("<I", len(text)), text, *(self._parts[name] for name in names))))

    def _obey(self, viewer: int, text: str) -> None:
        """Apply a request from the page for certain images or a polarity. Anything else is ignored."""
        try:
            asked = json.loads(text)
        except ValueError:
            return
        if not isinstance(asked, Mapping):
            return
        wanted = asked.get("images")
        if isinstance(wanted, list):
            self._wanted[viewer] = frozenset(name for name in IMAGES if name in wanted)
        for polarity in POLARITIES:
            if asked.get("polarity") == polarity != self._gain.polarity:
                self._gain.polarity = polarity
                self._statistics.note("view", f"polarity {polarity}, set on the page")

    async def _motion_jpeg(self, request: Any) -> Any:
        self._check_room()
        answer = self._web.StreamResponse(headers={**_HEADERS, "Content-Type": "multipart/x-mixed-replace; boundary=frame"})
        await answer.prepare(request)
        viewer, seen = id(answer), self._number
        self._wanted[viewer] = frozenset({"fused"})
        try:
            while not self._ending:
                seen = await self._next(seen)
                part = self._parts.get("fused")
                if part is not None and not self._ending:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(part)}\r\n\r\n"
                    # A viewer that never reads would occupy its place forever.
                    await asyncio.wait_for(answer.write(head.encode() + part + b"\r\n"), _MAX_WAITING_S)
        except (ConnectionResetError, asyncio.TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            del self._wanted[viewer]
        return answer

    def _check_room(self) -> None:
        if len(self._wanted) >= _MAX_VIEWERS:
            raise self._web.HTTPServiceUnavailable(
                text=f"{_MAX_VIEWERS} viewers are watching, which is the limit; try again later\n"
            )

    def _current_figures(self) -> dict[str, Any]:
        now_s = time.monotonic()
        if now_s - self._figures_s >= _FIGURES_EVERY_S:
            self._figures_s = now_s
            snapshot = self._statistics.snapshot()
            self._figures = {
                "rate_hz": snapshot["pairs"]["rate_hz"],
                "age": {key: snapshot["stages"]["age"][key] for key in ("p50_ms", "p99_ms")},
                "infer_ms": snapshot["stages"]["infer"]["p50_ms"],
                "misregistration_px": snapshot["skew"]["misregistration_px"]["p95"],
                "refined_px": None if snapshot["refinement"] is None else snapshot["refinement"]["correction_px"],
                "not_shown": sum(snapshot["pairs"]["drops"].values()),
                "viewers": len(self._wanted),
                "cameras": {
                    side: {
                        "rate_hz": camera["rate_hz"],
                        "dropped": sum(camera["drops"].values()),
                        "freezes": camera["freezes"],
                        "state": camera["state"],
                    }
                    for side, camera in snapshot["cameras"].items()
                },
            }
        return self._figures


def _tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (certificate, key):
        read_file(path, kind="certificate or key", most_bytes=_MOST_PEM_BYTES)
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise InputError(
            f"{certificate} and {key} are not a certificate and its unencrypted key in PEM",
            "give the full chain first and then the key that belongs to it",
        ) from error
    return context


def _origin(text: str) -> str:
    """The origin that a browser states for pages at this address."""
    try:
        parts = urlsplit(text.lower().rstrip("/"))
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.path and not parts.query and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in parts.netloc:
        raise UsageError(
            f"--allow-origin '{printable(redact(text))}' is not the address of a site", "write it as https://cameras.example"
        )
    port = f":{parts.port}" if parts.port not in (None, {"http": 80, "https": 443}[parts.scheme]) else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{port}"


def _host_name(text: str) -> str | None:
    """The name in a header like ``Host``, without its port; None if it is malformed."""
    try:
        return urlsplit(f"//{text.strip().lower()}").hostname
    except ValueError:
        return None


def _image(frame: FusedFrame, name: str) -> Array | None:
    if name == "ir":
        return None if frame.ir is None else (frame.ir * 255 + 0.5).astype("uint8")
    return frame.image if name == "fused" else frame.vis


def _jpeg(image: Array) -> bytes:
    encoded, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    if not encoded:
        raise BackendError(f"this OpenCV cannot write an image of shape {image.shape} as JPEG", "install opencv-python")
    return data.tobytes()
