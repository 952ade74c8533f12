"""WebRTC video of the browser view, received by aiortc."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the browser view needs the extra [stream]")
aiortc = pytest.importorskip("aiortc", reason="WebRTC needs the extra [webrtc]")

from examples.browser import BROWSER, Browser
from refusion_edge.stream.frames import SECOND, FusedFrame
from refusion_edge.stream.outputs import view as view_module
from refusion_edge.stream.outputs import webrtc
from refusion_edge.stream.outputs.view import ViewSink
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import parse_output

COLOR = (40, 160, 220)


class Served:
    """A view that gets frames of one color from a thread."""

    def __init__(self, **options: Any) -> None:
        self.sink = ViewSink(parse_output("view://127.0.0.1:0"), Statistics(), ThermalGain(), **options)
        self.sink.__enter__()
        deadline_s = time.monotonic() + 60
        while webrtc.is_available() and self.sink._peers is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.sink.address[1]}"

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.sink.__exit__(None, None, None)

    def _feed(self) -> None:
        image = np.full((121, 161, 3), COLOR, np.uint8)
        number = 0
        while not self._stop.wait(0.05):
            self.sink.write(FusedFrame(image, None, None, number, number * SECOND // 20, 0, "fused"))
            number += 1


@pytest.fixture
def served() -> Iterator[Served]:
    view = Served()
    yield view
    view.close()


async def offer_of(connection: Any) -> str:
    connection.addTransceiver("video", direction="recvonly")
    await connection.setLocalDescription(await connection.createOffer())
    return str(connection.localDescription.sdp)


async def post(session: Any, address: str, offer: str, **headers: str) -> tuple[int, str, str]:
    headers = {"Content-Type": "application/sdp", **headers}
    async with session.post(f"{address}/whep", data=offer, headers=headers) as answer:
        return answer.status, answer.headers.get("Location", ""), await answer.text()


def connection() -> Any:
    return aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))


async def watch(session: Any, address: str, viewer: Any) -> tuple[str, Any]:
    """Connect, and return where the connection is and its track."""
    arrived = asyncio.get_running_loop().create_future()
    viewer.on("track", lambda track: arrived.done() or arrived.set_result(track))
    status, location, answer = await post(session, address, await offer_of(viewer))
    assert status == 201, answer
    await viewer.setRemoteDescription(aiortc.RTCSessionDescription(sdp=answer, type="answer"))
    return location, await asyncio.wait_for(arrived, 20)


async def until(condition: Any, seconds: float = 20.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


def test_a_viewer_receives_the_fused_frames_until_it_leaves(served: Served) -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            viewer = connection()
            location, track = await watch(session, served.address, viewer)
            for _ in range(3):
                frame = await asyncio.wait_for(track.recv(), 30)
            pixels = frame.to_ndarray(format="bgr24")
            assert pixels.shape == (120, 160, 3)
            assert np.abs(pixels.mean((0, 1)) - COLOR).max() < 10
            assert len(served.sink._peers or ()) == 1
            async with session.delete(f"{served.address}{location}") as answer:
                assert answer.status == 200
            assert len(served.sink._peers or ()) == 0
            async with session.delete(f"{served.address}{location}") as answer:
                assert answer.status == 404
            await viewer.close()

    asyncio.run(run())


def test_the_end_of_the_stream_ends_the_connections(served: Served) -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            viewer = connection()
            _, track = await watch(session, served.address, viewer)
            await asyncio.wait_for(track.recv(), 30)
            await asyncio.to_thread(served.close)
            assert len(served.sink._peers or ()) == 0
            await until(lambda: viewer.connectionState == "closed")

    asyncio.run(run())


def test_a_viewer_that_never_connects_loses_its_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "_CONNECT_S", 3.0)
    monkeypatch.setattr(view_module, "MOST_PEERS", 2)

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            viewer = connection()
            offer = await offer_of(viewer)
            assert [(await post(session, served.address, offer))[0] for _ in range(3)] == [201, 201, 503]
            await until(lambda: not len(served.sink._peers or ()))
            assert (await post(session, served.address, offer))[0] == 201
            await viewer.close()

    asyncio.run(run())


def test_viewers_that_come_at_once_get_no_more_places(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "MOST_PEERS", 1)

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            viewer, arrived = connection(), asyncio.Event()
            offer = (await offer_of(viewer)).encode()

            async def slowly() -> AsyncIterator[bytes]:
                yield offer[:100]
                await arrived.wait()
                yield offer[100:]

            async def ask() -> int:
                headers = {"Content-Type": "application/sdp"}
                async with session.post(f"{served.address}/whep", data=slowly(), headers=headers) as answer:
                    return int(answer.status)

            asked = [asyncio.create_task(ask()) for _ in range(3)]
            await asyncio.sleep(0.3)
            arrived.set()
            assert sorted(await asyncio.gather(*asked)) == [201, 503, 503]
            await viewer.close()

    asyncio.run(run())


def test_a_damaged_or_endless_offer_is_answered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "_MAX_WAITING_S", 0.3)
    head = b"POST /whep HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\n"
    for rest, code in ((b"Content-Encoding: gzip\r\n\r\nabcde", b"400"), (b"\r\na", b"408")):
        with socket.create_connection(served.sink.address, timeout=10) as client:
            client.sendall(head + rest)
            assert client.recv(1024).split()[1] == code


def test_offers_that_cannot_be_used_are_refused(served: Served) -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            viewer = connection()
            good = await offer_of(viewer)
            channel = connection()
            channel.createDataChannel("x")
            await channel.setLocalDescription(await channel.createOffer())
            bad = (
                "",
                "nonsense",
                good.replace("m=video", "m=what"),
                channel.localDescription.sdp,
                good[: len(good) // 2] + "\0",
            )
            for offer in (*bad, good.replace("a=ice-pwd", "a=nothing"), good.replace("a=fingerprint", "a=nothing")):
                assert (await post(session, served.address, offer))[0] == 400, offer
            assert (await post(session, served.address, good + "a=x:" + "x" * 100_000))[0] == 413
            assert (await post(session, served.address, good, **{"Content-Type": "text/plain"}))[0] == 415
            assert (await post(session, served.address, good, Origin="http://elsewhere.example"))[0] == 403
            assert (await post(session, served.address, good, Host="elsewhere.example"))[0] == 403
            assert len(served.sink._peers or ()) == 0
            await viewer.close()
            await channel.close()

    asyncio.run(run())


def test_the_token_is_needed() -> None:
    view = Served(token="secret")

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            viewer = connection()
            offer = await offer_of(viewer)
            assert (await post(session, view.address, offer))[0] == 401
            assert (await post(session, view.address, offer, Authorization="Bearer secret"))[0] == 201
            await viewer.close()

    try:
        asyncio.run(run())
    finally:
        view.close()


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\v", "\f", "\x85", "\u2028"])
def test_no_address_in_an_offer_is_contacted(end: str) -> None:
    secured = ("v=0", "a=ice-ufrag:x", "a=ice-pwd:x", "a=fingerprint:x", "m=video 9 UDP/TLS/RTP/SAVPF 96")
    hidden = end.join(("a=x:y", "a=candidate:1 1 udp 1 10.0.0.1 9 typ host", "a=end-of-candidates"))
    offer = "\r\n".join((*secured, hidden, ""))
    assert "10.0.0.1" not in webrtc._usable(offer)
    assert "end-of" not in webrtc._usable(offer)


def test_without_aiortc_the_page_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (view_module, webrtc):
        monkeypatch.setattr(module, "is_available", lambda: False)
    view = Served()

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            assert (await post(session, view.address, "v=0"))[0] == 501

    try:
        asyncio.run(run())
        assert view.sink._controls()["whep"] is False
    finally:
        view.close()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_shows_it_and_goes_back_to_jpeg_when_it_fails(served: Served) -> None:
    with Browser() as browser:
        browser.open(f"{served.address}/", (1000, 700))
        browser.wait_for("typeof usesDirect === 'function' && usesDirect() && carrier === 'WebRTC'", 90)
        color = "(() => [...byId('fused').getContext('2d').getImageData(80, 60, 1, 1).data].slice(0, 3))()"
        assert np.abs(np.subtract(browser.evaluate(color), COLOR[::-1])).max() < 12
        assert browser.evaluate("byId('fused').width") == 160
        browser.evaluate("stopDirect(direct, 'the test says so')")
        browser.wait_for("byId('fused').width === 161", 30)  # a JPEG picture, whose odd sizes are whole
        assert "the test says so" in browser.evaluate("carrier")
        assert len(served.sink._peers or ()) == 0
