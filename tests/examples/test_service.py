"""The service on asyncio answers with frames, says why there are none, and leaves nothing running."""

from __future__ import annotations

import asyncio
import threading

import cv2
import numpy as np
import pytest

pytest.importorskip("aiohttp")

from aiohttp.test_utils import TestClient, TestServer

from examples.service import make_app
from refusion_edge.fuser import Fuser
from refusion_edge.stream.fused_stream import FusedStream, open_stream
from refusion_edge.tasks import find_task
from tests.stream.conftest import MeanBackend, camera


def opened(ir: str, vis: str) -> FusedStream:
    return open_stream(ir, vis, fuser=Fuser(MeanBackend(), find_task("ir_vis")))


def test_the_newest_frame_is_served() -> None:
    async def ask() -> None:
        stream = opened(camera("ir"), camera("vis"))
        async with TestClient(TestServer(make_app(stream))) as client:
            first = await (await client.get("/frame.json")).json()
            assert first["mode"] == "fused"
            assert first["skew_ms"] is not None
            answer = await client.get("/frame.jpg")
            image = cv2.imdecode(np.frombuffer(await answer.read(), np.uint8), cv2.IMREAD_COLOR)
            assert image.shape == (48, 64, 3)
            while (await (await client.get("/frame.json")).json())["number"] == first["number"]:
                await asyncio.sleep(0.01)
        assert "ended" in repr(stream)

    asyncio.run(ask())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("stream", "reader", "engine"))]


def test_a_stream_that_fails_is_said() -> None:
    async def ask() -> None:
        async with TestClient(TestServer(make_app(opened("nowhere.mkv", "nowhere.mkv")))) as client:
            answer = await client.get("/frame.jpg")
            assert answer.status == 503
            assert "nowhere.mkv" in await answer.text()

    asyncio.run(ask())
