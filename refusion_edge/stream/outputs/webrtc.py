"""The fused frames as WebRTC video, negotiated by WHEP: a viewer posts an offer in SDP, and gets the answer back.

aiortc encodes for every viewer in threads of its own, always the newest frame. It opens UDP ports while there are viewers; who
speaks to them must know the secrets of the answer. No address in an offer is contacted: a viewer has to call first.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.machine import is_installed
from refusion_edge.stream.outputs.sinks import as_bgr

MOST_PEERS = 4
"""Viewers at once: each one costs an encoder."""
MOST_OFFER_BYTES = 64 << 10
_MOST_MEDIA = 4
_LOG = logging.getLogger("refusion_edge")
_CONNECT_S, _CLOSE_S = 15.0, 3.0
_CLOCK_HZ = 90_000
_SECRETS = ("a=ice-ufrag:", "a=ice-pwd:", "a=fingerprint:")
_LOST = ("failed", "disconnected", "closed")

Newest = Callable[[int], Awaitable["tuple[int, Array] | None"]]
"""Takes the number of a frame, and gives a later one as soon as there is one, with its number; None at the end."""


def is_available() -> bool:
    """Whether this machine can send WebRTC."""
    return is_installed("aiortc") and is_installed("av")


def load_library() -> bool:
    """Load aiortc; returns whether it works."""
    try:
        importlib.import_module("aiortc")
    except Exception as error:  # whatever is wrong with it, the view works without
        _LOG.warning("WebRTC is not offered, as aiortc cannot be loaded: %s", error)
        return False
    return True


class Peers:
    """The viewers that watch over WebRTC. Call its methods only from one event loop, that of the server.

    Args:
        newest: Where their frames come from.
    """

    def __init__(self, newest: Newest) -> None:
        self._newest = newest
        self._connections: dict[str, Any] = {}
        self._timers: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._connections)

    async def answer(self, offer: str) -> tuple[str, str]:
        """Accept a viewer.

        Args:
            offer: Its offer, SDP that asks for video.

        Returns:
            The viewer's secret name, and the answer, SDP.

        Raises:
            InputError: The offer cannot be used.
        """
        aiortc: Any = importlib.import_module("aiortc")
        # By default, aiortc would ask a server on the internet for the address of this machine.
        connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        name = secrets.token_urlsafe(16)
        self._connections[name] = connection
        try:
            description = aiortc.RTCSessionDescription(sdp=_usable(offer), type="offer")
            await connection.setRemoteDescription(description)
            connection.addTrack(_make_track(self._newest))
            await connection.setLocalDescription(await connection.createAnswer())
        except BaseException as error:  # a parser of text from strangers may fail in any way
            await self.hang_up(name)
            if not isinstance(error, Exception):
                raise
            raise error if isinstance(error, InputError) else _bad_offer() from error

        async def on_change() -> None:
            if connection.connectionState in _LOST:
                await self.hang_up(name)

        connection.on("connectionstatechange", on_change)
        self._timers[name] = asyncio.get_running_loop().create_task(self._expect(name, connection))
        return name, connection.localDescription.sdp

    async def hang_up(self, name: str) -> bool:
        """End the connection to a viewer; returns whether there was one."""
        connection = self._connections.pop(name, None)
        if connection is None:
            return False
        timer = self._timers.pop(name, None)
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(connection.close(), _CLOSE_S)
        return True

    async def close(self) -> None:
        """End the connections to all viewers."""
        await asyncio.gather(*map(self.hang_up, list(self._connections)))

    async def _expect(self, name: str, connection: Any) -> None:
        """End a connection that is not made in time: it would occupy its place forever."""
        await asyncio.sleep(_CONNECT_S)
        if connection.connectionState != "connected":
            await self.hang_up(name)


def _usable(offer: str) -> str:
    """The offer without the addresses of the viewer.

    Raises:
        InputError: It does not ask for video alone, or with audio, which is declined.
    """
    lines = offer.splitlines()  # as aiortc does, which would find a line after a lone carriage return
    media = [line.split(" ")[0] for line in lines if line.startswith("m=")]
    # Without these, the connection could not be secured.
    secured = all(any(line.startswith(need) for line in lines) for need in _SECRETS)
    if not secured or "m=video" not in media or len(media) > _MOST_MEDIA or not {*media} <= {"m=video", "m=audio"}:
        raise _bad_offer()
    # Named addresses would be contacted, also those inside a network that the viewer cannot reach itself.
    kept = [line for line in lines if not line.startswith(("a=candidate:", "a=end-of-candidates"))]
    return "\r\n".join(kept)


def _bad_offer() -> InputError:
    return InputError("the offer is not SDP that asks for video", "send what WHEP defines")


def _make_track(newest: Newest) -> Any:
    """The newest frames as a track of aiortc."""
    aiortc: Any = importlib.import_module("aiortc")

    class Track(aiortc.MediaStreamTrack):  # type: ignore[misc]
        kind = "video"

        def __init__(self) -> None:
            super().__init__()
            self._seen, self._started_s = 0, time.monotonic()

        async def recv(self) -> Any:
            found = await newest(self._seen)
            if found is None or self.readyState != "live":
                self.stop()
                raise aiortc.mediastreams.MediaStreamError
            self._seen, image = found
            frame = await asyncio.to_thread(_to_frame, image)
            frame.pts = round((time.monotonic() - self._started_s) * _CLOCK_HZ)
            frame.time_base = Fraction(1, _CLOCK_HZ)
            return frame

    return Track()


def _to_frame(image: Array) -> Any:
    """A frame for the encoders, which take even sizes: an odd last row or column is left out."""
    from av import VideoFrame

    height, width = (side // 2 * 2 for side in image.shape[:2])
    return VideoFrame.from_ndarray(as_bgr(image[:height, :width]).copy(), format="bgr24").reformat(format="yuv420p")
