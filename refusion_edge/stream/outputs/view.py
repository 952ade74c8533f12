"""The browser view of one rig: both cameras, the fused frame and live figures.

Frames are encoded once, and only while there are viewers. Each viewer gets the newest frame after it has received the previous
one, so slow viewers never make the pipeline wait.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from typing import Any

import cv2
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.documents import parse_json
from refusion_edge.errors import BackendError, InputError, RefusionError
from refusion_edge.machine import require
from refusion_edge.rig.model import POLARITIES
from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs.clips import Clips, NoClips
from refusion_edge.stream.outputs.sensors import Sensors
from refusion_edge.stream.outputs.server import DEFAULT_RIG, HEADERS, PageServer
from refusion_edge.stream.outputs.webrtc import MOST_OFFER_BYTES, MOST_PEERS, Peers, is_available, load_library
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import Uri

IMAGES = ("fused", "ir", "vis")

_MAX_VIEWERS = 64
_JPEG_QUALITY = 82
_FIGURES_EVERY_S = 0.5
_MAX_WAITING_S = 10.0


class ViewSink:
    """Serves the stream to browsers. Implements ``Sink``.

    ``/`` is the page, ``/ws`` its WebSocket, ``/control`` changes polarity and recording, ``/fused.mjpg`` is Motion JPEG,
    ``/whep`` answers offers of WebRTC where aiortc is installed, ``/status.json`` is the report so far, ``/metrics`` has the
    same figures for Prometheus, and ``/healthz`` and ``/readyz`` say whether the stream works.

    Args:
        uri: ``view://HOST:PORT``.
        statistics: Figures to show.
        gain: Its polarity can be switched from the page.
        server: The server of several rigs, already entered; None for a server of its own.
        rig: Name of the rig there.
        clips: Records videos for viewers; None if they must not.
        **options: Those of the server of its own, see ``PageServer``; errors as there.

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
        server: PageServer | None = None,
        rig: str = DEFAULT_RIG,
        clips: Clips | None = None,
        **options: Any,
    ) -> None:
        self.name = str(uri)
        self._own = PageServer(uri, **options) if server is None else None
        self._server = server or self._own
        self._rig = rig
        self._statistics, self._gain = statistics, gain
        self._clips: Clips | NoClips = clips or NoClips()
        self._web = require("aiohttp.web", "stream", "the browser view")
        self._wanted: dict[int, frozenset[str]] = {}
        self._parts: dict[str, bytes] = {}
        self._header: dict[str, Any] = {}
        self._news = asyncio.Condition()
        self._number = 0
        self._ending = self._entered = False
        self._figures: dict[str, Any] = {}
        self._figures_s = 0.0
        self._sensors = Sensors()
        self._image: Array | None = None
        self._peers: Peers | None = None

    @property
    def address(self) -> tuple[str, int]:
        """See the attributes."""
        assert self._server is not None
        return self._server.address

    @property
    def figures_of(self) -> Statistics:
        """See ``Feed``."""
        return self._statistics

    @property
    def viewers(self) -> int:
        """See ``Feed``."""
        return len(self._wanted)

    def __enter__(self) -> Self:
        assert self._server is not None
        self._server.add(self._rig, self)
        if self._own is not None:
            self._own.__enter__()
        self._entered = True
        if is_available():
            self._server.spawn(self._offer_webrtc())
        return self

    def __exit__(self, *exc: object) -> None:
        if self._entered and self._server is not None:
            self._entered = False
            self._clips.close()
            self._server.spawn(self._stop())
            if self._own is not None:
                self._own.__exit__(*exc)

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``; encodes nothing while there are no viewers."""
        self._clips.offer(frame)
        if not (self._wanted or self._peers):
            return
        wanted = frozenset().union(*self._wanted.copy().values())
        parts = {name: _jpeg(image) for name in wanted if (image := _image(frame, name)) is not None}
        header = {
            "number": frame.number,
            "time_ns": frame.time_ns,
            "mode": frame.mode,
            "marks": list(frame.marks),
            "skew_ms": None if frame.skew_ns is None else frame.skew_ns / MS,
            "width": frame.image.shape[1],
            "height": frame.image.shape[0],
            **self._controls(),
            "figures": self._current_figures(),
        }
        assert self._server is not None
        self._server.spawn(self._publish(header, parts, frame.image))

    # In the server thread

    async def _stop(self) -> None:
        self._ending = True
        await self._wake()
        if self._peers is not None:
            await self._peers.close()

    async def _offer_webrtc(self) -> None:
        if await asyncio.to_thread(load_library) and not self._ending:  # which takes seconds on small machines
            self._peers = Peers(self._newest)

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _publish(self, header: dict[str, Any], parts: dict[str, bytes], image: Array) -> None:
        self._header, self._parts, self._image = header, parts, image
        self._number += 1
        await self._wake()

    async def _next(self, seen: int) -> int:
        async with self._news:
            await self._news.wait_for(lambda: self._number > seen or self._ending)
        return self._number

    async def _newest(self, seen: int) -> tuple[int, Array] | None:
        """See ``refusion_edge.stream.outputs.webrtc.Newest``."""
        number = await self._next(seen)
        return None if self._ending or self._image is None else (number, self._image)

    async def status(self) -> dict[str, Any]:
        """See ``Feed``."""
        snapshot = await asyncio.to_thread(self._statistics.snapshot)
        return {"schema": "refusion-edge/stream-status/1", "viewers": len(self._wanted), **snapshot}

    async def socket(self, request: Any) -> Any:
        """See ``Feed``."""
        self._check_room()
        answer = self._web.WebSocketResponse(heartbeat=10.0, max_msg_size=4096, compress=False)
        await answer.prepare(request)
        viewer = id(answer)
        self._wanted[viewer] = frozenset({"fused"})
        sender = asyncio.create_task(self._send_images(request, answer, viewer))
        try:
            async for message in answer:
                if message.type == self._web.WSMsgType.TEXT:
                    self._obey(viewer, message.data)
        finally:
            del self._wanted[viewer]
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return answer

    async def _send_images(self, request: Any, answer: Any, viewer: int) -> None:
        seen = self._number
        while not answer.closed:
            seen = await self._next(seen)
            if self._ending:
                await answer.send_str(json.dumps({"ended": self._statistics.end_reason or "it was stopped"}))
                await answer.close(message=b"the stream has ended")
                return
            names = [name for name in IMAGES if name in self._wanted[viewer] and name in self._parts]
            header = {**self._header, "images": {name: len(self._parts[name]) for name in names}}
            text = json.dumps(header, allow_nan=False).encode()
            data = b"".join((struct.pack("<I", len(text)), text, *(self._parts[name] for name in names)))
            try:
                # A viewer that never reads would keep its place for ever: what it sends counts as a sign of life.
                await asyncio.wait_for(answer.send_bytes(data), _MAX_WAITING_S)
            except asyncio.TimeoutError:
                _cut(request)
                return

    def _obey(self, viewer: int, text: str) -> None:
        """Send the images that the page asks for. Anything else is ignored."""
        try:
            asked = parse_json(text.encode(errors="replace"), "the request")
        except InputError:
            return
        if not isinstance(asked, Mapping):
            return
        wanted = asked.get("images")
        if isinstance(wanted, list):
            self._wanted[viewer] = frozenset(name for name in IMAGES if name in wanted)

    async def control(self, request: Any) -> Any:
        """See ``Feed``."""
        web = self._web
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send JSON\n")
        try:
            asked = parse_json(await self._whole(request.read()), "the request")
        except InputError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        polarity, record = (asked.get("polarity"), asked.get("record")) if isinstance(asked, Mapping) else (None, None)
        if polarity not in POLARITIES and not isinstance(record, bool):
            raise web.HTTPBadRequest(text='send {"polarity": "white", "black" or "auto"} or {"record": true or false}\n')
        if polarity in POLARITIES and polarity != self._gain.polarity:
            self._gain.polarity = polarity
            self._statistics.note("view", f"polarity {polarity}, set on the page")
        if isinstance(record, bool):
            try:
                await asyncio.to_thread(self._clips.start if record else self._clips.stop)
            except RefusionError as error:
                raise web.HTTPConflict(text=f"{error}\n") from None
        return web.json_response(self._controls(), headers=HEADERS)

    def _controls(self) -> dict[str, Any]:
        """The state of what viewers can change."""
        return {"polarity": self._gain.polarity, "clip": asdict(self._clips.state), "whep": self._peers is not None}

    async def whep(self, request: Any) -> Any:
        """See ``Feed``."""
        web, peers = self._web, self._peers
        if peers is None:
            raise web.HTTPNotImplemented(text="WebRTC needs aiortc on the device: pip install 'refusion-edge[webrtc]'\n")
        if request.method == "DELETE":
            if not await peers.hang_up(request.match_info["peer"]):
                raise web.HTTPNotFound(text="there is no such viewer\n")
            return web.Response(headers=HEADERS)
        if request.content_type != "application/sdp":
            raise web.HTTPUnsupportedMediaType(text="send an offer as application/sdp\n")
        self._check_room()
        offer = await self._whole(self._read_offer(request))
        # Only now: while an offer arrives, others may take the last place.
        if self._ending or len(peers) >= MOST_PEERS:
            raise web.HTTPServiceUnavailable(text=f"at most {MOST_PEERS} viewers can watch over WebRTC\n")
        try:
            peer, answer = await peers.answer(offer.decode(errors="replace"))
        except InputError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        headers = {**HEADERS, "Content-Type": "application/sdp", "Location": f"{request.path}/{peer}"}
        return web.Response(status=201, text=answer, headers=headers)

    async def _read_offer(self, request: Any) -> bytes:
        offer = b""
        while chunk := await request.content.read(MOST_OFFER_BYTES):
            offer += chunk
            if len(offer) > MOST_OFFER_BYTES:
                raise self._web.HTTPRequestEntityTooLarge(MOST_OFFER_BYTES, len(offer))
        return offer

    async def _whole(self, reading: Coroutine[Any, Any, bytes]) -> bytes:
        """The body of a request; the answer to one that is damaged or does not come to its end is an error."""
        web = self._web
        try:
            return await asyncio.wait_for(reading, _MAX_WAITING_S)
        except web.RequestPayloadError:
            raise web.HTTPBadRequest(text="the body of the request is damaged\n") from None
        except asyncio.TimeoutError:
            raise web.HTTPRequestTimeout(text="the request did not come to its end\n") from None

    async def motion_jpeg(self, request: Any) -> Any:
        """See ``Feed``."""
        self._check_room()
        answer = self._web.StreamResponse(headers={**HEADERS, "Content-Type": "multipart/x-mixed-replace; boundary=frame"})
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
            _cut(request)
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
                "device": self._sensors.summary(),
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


def _cut(request: Any) -> None:
    """Close a connection without waiting for data that the viewer does not take."""
    if request.transport is not None:
        request.transport.abort()


def _image(frame: FusedFrame, name: str) -> Array | None:
    if name == "ir":
        return None if frame.ir is None else (frame.ir * 255 + 0.5).astype("uint8")
    return frame.image if name == "fused" else frame.vis


def _jpeg(image: Array) -> bytes:
    encoded, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    if not encoded:
        raise BackendError(f"this OpenCV cannot write an image of shape {image.shape} as JPEG", "install opencv-python")
    return data.tobytes()
