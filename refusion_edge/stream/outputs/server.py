"""The server of the browser view: one page for one rig or for several, its access control, and endpoints for monitoring.

It runs in a thread of its own. A single rig has the page at ``/``. With several rigs, ``/`` is a grid of all of them, and the
page of each is at ``/NAME/``.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import html
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from typing_extensions import Self

from refusion_edge.errors import OutputError, StreamError, UsageError
from refusion_edge.machine import require
from refusion_edge.stream.outputs.connections import LIMITS, Connections, Limits
from refusion_edge.stream.outputs.prometheus import CONTENT_TYPE, RigFigures, to_prometheus
from refusion_edge.stream.outputs.sensors import Sensors
from refusion_edge.stream.outputs.tls import doubt_about, server_context
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import LOOPBACK, Uri, host_and_port, read_options
from refusion_edge.text import printable, redact

DEFAULT_RIG = "default"
"""Name of the rig in metrics if there is only one."""
HEALTH = ("/healthz", "/readyz")
"""Paths for orchestrators: whether to restart the stream, and whether it fuses frames. They need no token."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_DEFAULT_PORT = 8080
_START_S = _STOP_S = 5.0
_KEPT_ALIVE_S = 15.0
_MOST_REQUEST_BYTES = 4096
_COOKIE = "refusion_edge_token"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {"": "page.html", "page.css": "page.css", "page.js": "page.js"}
_GRID_FILES = {"": "grid.html", "grid.css": "grid.css", "grid.js": "grid.js"}
_RIGS = "<!-- rigs -->"


class Feed(Protocol):
    """What the page shows of one rig. Its coroutines run in the thread of the server."""

    @property
    def figures_of(self) -> Statistics:
        """The counters of its stream."""

    @property
    def viewers(self) -> int:
        """Number of its viewers."""

    async def socket(self, request: Any) -> Any:
        """Answer a WebSocket with images as they come."""

    async def motion_jpeg(self, request: Any) -> Any:
        """Answer with a Motion JPEG."""

    async def status(self) -> dict[str, Any]:
        """The report so far."""

    async def whep(self, request: Any) -> Any:
        """Answer an offer of WebRTC, or end a connection."""

    async def control(self, request: Any) -> Any:
        """Change the polarity, or start or end a clip, as the JSON of a request says; answer with the new state."""


class PageServer:
    """Serves the page. Enter it before its feeds come, and leave it after they have gone.

    Args:
        uri: ``view://HOST:PORT``; the default is 127.0.0.1:8080, and port 0 means any free port.
        rigs: Names of several rigs, in the order of the grid; empty for a single one.
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
        loop: The event loop of the server, after it was entered.
    """

    def __init__(
        self,
        uri: Uri,
        *,
        rigs: Sequence[str] = (),
        token: str | None = None,
        allow_origins: Sequence[str] = (),
        announce: Callable[[str], object] = lambda _text: None,
        limits: Limits = LIMITS,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._rigs = tuple(rigs)
        self._host, self._port = host_and_port(uri, "127.0.0.1", _DEFAULT_PORT)
        self._local = self._host in LOOPBACK
        self._origins = frozenset(_origin(text) for text in allow_origins)
        self._token = token or (None if self._local else secrets.token_urlsafe(16))
        self._announce = announce
        self._web = require("aiohttp.web", "stream", "the browser view")
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._feeds: dict[str, Feed] = {}
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls = None if tls is None else server_context(*tls)
        self._doubt = "" if tls is None or self._tls is None else doubt_about(tls[0], self._tls)
        self._connections = Connections(limits, self._tls)
        self._sensors = Sensors()
        self.address = (self._host, self._port)

    def __enter__(self) -> Self:
        listening = self._bind()
        self.address = listening.getsockname()[:2]
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(self.loop, listening), name="view", daemon=True)
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
        if self._doubt:
            # No error: a device without a battery may not know the time when it starts.
            self._announce(f"browsers will not trust the certificate of --tls: {self._doubt}")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None and self.loop is not None:
            if self._thread.is_alive():
                self.loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_STOP_S)

    def add(self, rig: str, feed: Feed) -> None:
        """Show a rig; one of the same name is replaced. May be called from any thread."""
        self._feeds = {**self._feeds, rig: feed}

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the thread of the server. May be called from any thread while the server runs."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._spawn, work)

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

        application = web.Application(middlewares=[web.middleware(guard)], client_max_size=_MOST_REQUEST_BYTES)
        get, below = application.router.add_get, "/{rig}/" if self._rigs else "/"
        for path in HEALTH:
            get(path, self._healthy)
        get("/metrics", self._prometheus)
        if self._rigs:
            for name in _GRID_FILES:
                get(f"/{name}", self._grid_file)
            get("/status.json", self._all)
        for name in _FILES:
            get(f"{below}{name}", self._file)
        get(f"{below}ws", self._socket)
        get(f"{below}fused.mjpg", self._motion_jpeg)
        get(f"{below}status.json", self._status)
        application.router.add_post(f"{below}control", self._control)
        application.router.add_post(f"{below}whep", self._whep)
        application.router.add_delete(f"{below}whep/{{peer}}", self._whep)
        runner = web.AppRunner(
            application, access_log=None, logger=_log_of_own_faults(), shutdown_timeout=1.0, keepalive_timeout=_KEPT_ALIVE_S
        )
        await runner.setup()
        accepting = asyncio.create_task(self._connections.accept(listening, runner.server))
        self._ready.set()
        await self._stopping.wait()
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        self._connections.close()
        listening.close()
        await runner.cleanup()
        if self._tasks:  # such as those that close the connections of WebRTC
            await asyncio.wait(self._tasks, timeout=_STOP_S / 2)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        # A task without a reference may be collected before it runs.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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

    def _feed(self, request: Any) -> Feed:
        feed = self._feeds.get(request.match_info.get("rig", DEFAULT_RIG))
        if feed is None:
            raise self._web.HTTPNotFound(text="there is no such rig\n")
        return feed

    async def _socket(self, request: Any) -> Any:
        return await self._feed(request).socket(request)

    async def _control(self, request: Any) -> Any:
        return await self._feed(request).control(request)

    async def _motion_jpeg(self, request: Any) -> Any:
        return await self._feed(request).motion_jpeg(request)

    async def _whep(self, request: Any) -> Any:
        return await self._feed(request).whep(request)

    async def _status(self, request: Any) -> Any:
        return self._web.json_response(await self._feed(request).status(), headers=HEADERS)

    async def _all(self, _request: Any) -> Any:
        rigs = {rig: await feed.status() for rig, feed in self._feeds.items()}
        return self._web.json_response({"schema": "refusion-edge/site-status/1", "rigs": rigs}, headers=HEADERS)

    async def _file(self, request: Any) -> Any:
        self._feed(request)
        return self._text(_FILES[request.path.rpartition("/")[2]])

    async def _grid_file(self, request: Any) -> Any:
        return self._text(_GRID_FILES[request.path.removeprefix("/")])

    def _text(self, name: str) -> Any:
        text = resources.files("refusion_edge.stream.outputs").joinpath("page", name).read_text("utf-8")
        if _RIGS in text:
            names = [html.escape(rig) for rig in self._rigs]
            text = text.replace(_RIGS, "".join(
                f'<a class="rig" data-rig="{name}" href="{name}/"><canvas width="4" height="3"></canvas>'
                f'<span class="name">{name}</span> <span class="state" role="status">connecting</span></a>'
                for name in names
            ))  # fmt: skip
        return self._web.Response(text=text, content_type=_TYPES[Path(name).suffix], headers=HEADERS)

    async def _prometheus(self, _request: Any) -> Any:
        rigs = [
            RigFigures(rig, await asyncio.to_thread(feed.figures_of.snapshot), feed.viewers)
            for rig, feed in self._feeds.items()
        ]
        text = await asyncio.to_thread(to_prometheus, rigs, self._sensors)
        return self._web.Response(body=text.encode(), headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def _healthy(self, request: Any) -> Any:
        states = {rig: feed.figures_of.health() for rig, feed in self._feeds.items()}
        bad = {rig: state for rig, state in states.items() if not (state.ready if request.path == "/readyz" else state.alive)}
        reasons = [f"{rig}: {state.reason}" if self._rigs else state.reason for rig, state in bad.items()]
        # A site is ready if any of its rigs is: the others have alerts of their own.
        good = len(bad) < len(states) if request.path == "/readyz" else not bad
        return self._web.json_response({"ok": good, "reason": "; ".join(reasons)}, status=200 if good else 503, headers=HEADERS)


def _log_of_own_faults() -> logging.Logger:
    """The log of aiohttp without malformed requests, with which strangers could fill the disk, or write a token into it."""
    from aiohttp.http_exceptions import HttpProcessingError
    from aiohttp.web import RequestPayloadError

    # The last one: a client that is gone.
    theirs = HttpProcessingError, RequestPayloadError, ConnectionResetError

    def is_own(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], theirs))

    log = logging.getLogger("aiohttp.server.refusion_edge")
    log.filters = [is_own]
    return log


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
