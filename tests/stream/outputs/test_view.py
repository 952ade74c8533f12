"""The browser view: images, figures, access, and many viewers; in a real browser if one is installed."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the browser view needs the extra [stream]")

from examples.browser import BROWSER, Browser
from refusion_edge.errors import DiskFullError, InputError, OutputError, UsageError
from refusion_edge.images.io import read_image
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.outputs.clips import Clips, ClipState
from refusion_edge.stream.outputs.connections import LIMITS, Connections, Limits
from refusion_edge.stream.outputs.prometheus import RigFigures, to_prometheus
from refusion_edge.stream.outputs.view import ViewSink
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import parse_output
from tests.raising import raises
from tests.stream.conftest import camera, frames_of

Served = Callable[..., "Live"]


class Live:
    """A view that gets frames from its own thread."""

    def __init__(
        self,
        uri: str,
        token: str | None = None,
        allow_origins: tuple[str, ...] = (),
        limits: Limits = LIMITS,
        tls: tuple[Path, Path] | None = None,
        clips: Clips | None = None,
    ) -> None:
        self.gain, self.said = ThermalGain(), list[str]()
        self.sink = ViewSink(
            parse_output(uri),
            Statistics(),
            self.gain,
            token=token,
            allow_origins=allow_origins,
            announce=self.said.append,
            limits=limits,
            tls=tls,
            clips=clips,
        )
        self.sink.__enter__()
        self.port = self.sink.address[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        draw, number = np.random.default_rng(0), 0
        ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (48, 1))
        vis = draw.integers(0, 256, (48, 64, 3)).astype(np.uint8)
        fused = np.full((48, 64, 3), (0, 128, 255), np.uint8)
        while not self._stop.wait(0.03):
            self.sink.write(FusedFrame(fused, ramp, vis, number, number, 0, "fused", ("infrared frozen for 0.5 s",), 1_500_000))
            number += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        self.sink.__exit__(None, None, None)

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask("GET", path, None, headers)

    def post(self, body: object, path: str = "/control", **headers: str) -> tuple[int, dict[str, str], bytes]:
        headers = {"Content-Type": "application/json", **headers}
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


@pytest.fixture
def served() -> Iterator[Served]:
    running: list[Live] = []

    def serve(uri: str = "view://127.0.0.1:0", **options: Any) -> Live:
        running.append(Live(uri, **options))
        return running[-1]

    yield serve
    for live in running:
        live.close()


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    length = struct.unpack_from("<I", message)[0]
    header, at, images = json.loads(message[4 : 4 + length]), 4 + length, {}
    for name, size in header["images"].items():
        images[name] = cv2.imdecode(np.frombuffer(message[at : at + size], np.uint8), cv2.IMREAD_UNCHANGED)
        at += size
    assert at == len(message)
    return header, images


async def watch(port: int, ask: dict[str, Any] | None, messages: int = 3) -> list[bytes]:
    got = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://127.0.0.1:{port}/ws", max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=2.0)
        ) as viewer,
    ):
        if ask is not None:
            await viewer.send_json(ask)
            messages += 10  # messages that were already under way
        for _ in range(messages):
            got.append((await asyncio.wait_for(viewer.receive(), 10)).data)
    return got


def test_the_page_and_its_parts_are_served(served: Served) -> None:
    live = served()
    assert live.said == [f"browser view: http://127.0.0.1:{live.port}/"]
    for path, kind, word in (
        ("/", "text/html", "Side by side"),
        ("/page.js", "text/javascript", "WebSocket"),
        ("/page.css", "text/css", "canvas"),
    ):
        status, headers, body = live.get(path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert word.encode() in body
        assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert live.get("/../secrets")[0] == 404


def test_images_come_as_requested(served: Served) -> None:
    live = served()
    header, images = unpack(asyncio.run(watch(live.port, None))[-1])
    assert list(images) == ["fused"]
    assert np.abs(images["fused"].astype(int) - (0, 128, 255)).max() < 12
    assert header["marks"] == ["infrared frozen for 0.5 s"]
    assert header["skew_ms"] == 1.5
    header, images = unpack(asyncio.run(watch(live.port, {"images": ["ir", "vis"]}))[-1])
    assert sorted(images) == ["ir", "vis"]
    assert images["ir"].shape == (48, 64)
    assert abs(int(images["ir"][20, 63]) - 255) < 8


def test_polarity_is_switched_from_the_page(served: Served) -> None:
    live = served()
    status, _, body = live.post({"polarity": "black"})
    assert (status, json.loads(body)["polarity"]) == (200, "black")
    # A socket changes nothing, whatever is sent to it.
    header, _ = unpack(asyncio.run(watch(live.port, {"polarity": "white", "images": ["fused"], "x": [1]}))[-1])
    assert live.gain.polarity == header["polarity"] == "black"


@pytest.mark.parametrize(
    "body", [{"polarity": "purple"}, {"polarity": ["black"]}, {"record": 1}, {}, [], None, b"{", b"\xff", b"[" * 999]
)
def test_a_request_that_makes_no_sense_changes_nothing(served: Served, body: object) -> None:
    live = served()
    assert live.post(body)[0] == 400
    assert live.gain.polarity == "white"


def test_changes_need_a_post_of_this_page_with_the_token(served: Served) -> None:
    live, change = served("view://0.0.0.0:0", token="secret"), {"polarity": "black"}
    known = {"Authorization": "Bearer secret"}
    assert live.get("/control", **known)[0] == 405
    assert live.post(change)[0] == 401
    assert live.post(change, Authorization="Bearer wrong")[0] == 401
    assert live.post(change, **known, Origin="http://evil.example")[0] == 403
    # What a form of another site can send without asking the browser first.
    assert live.post(change, **known, **{"Content-Type": "text/plain"})[0] == 415
    assert live.post(b" " * 5000, **known)[0] == 413
    assert live.gain.polarity == "white"
    assert live.post(change, **known, Origin=f"http://127.0.0.1:{live.port}")[0] == 200
    assert live.gain.polarity == "black"


def test_viewers_record_only_where_a_folder_was_named(served: Served) -> None:
    live = served()
    status, _, body = live.post({"record": True})
    assert (status, b"--clips" in body) == (409, True)


def test_viewers_record_videos(served: Served) -> None:
    notes: list[str] = []
    live = served(clips=Clips(Path("clips"), "gate-", notes.append))
    for seconds in (0.5, 0.2):
        started = json.loads(live.post({"record": True})[2])["clip"]
        assert started["file"].startswith("gate-")
        assert json.loads(live.post({"record": True})[2])["clip"]["file"] == started["file"]  # one at a time
        time.sleep(seconds)
        assert unpack(asyncio.run(watch(live.port, None))[-1])[0]["clip"]["seconds"] > 0
        assert json.loads(live.post({"record": False})[2])["clip"] == {"file": None, "seconds": 0.0, "problem": ""}
        assert frames_of(Path("clips", started["file"])) >= 5
    assert len(list(Path("clips").iterdir())) == 2
    assert len(notes) == 4


def test_a_clip_is_complete_when_the_stream_ends() -> None:
    live = Live("view://127.0.0.1:0", clips=Clips(Path("clips")))
    live.post({"record": True})
    time.sleep(0.3)
    live.close()
    (clip,) = Path("clips").iterdir()
    assert frames_of(clip) >= 1


def test_a_clip_that_cannot_be_written_ends_and_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    live = served(clips=Clips(Path("file")))
    assert live.post({"record": True})[0] == 409

    def full(_watch: object) -> None:
        raise DiskFullError("the disk is full", "free some space")

    monkeypatch.setattr("refusion_edge.stream.outputs.video.DiskWatch.check", full)
    live = served(clips=Clips(Path("clips")))
    assert live.post({"record": True})[0] == 200
    deadline_s = time.monotonic() + 10
    while (state := live.sink._clips.state).file is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert state == ClipState(problem="the disk is full")
    assert unpack(asyncio.run(watch(live.port, None))[-1])[0]["clip"]["problem"] == "the disk is full"


def test_a_clip_has_a_limit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.stream.outputs.clips.MOST_SECONDS", 0.3)
    live = served(clips=Clips(Path("clips")))
    live.post({"record": True})
    deadline_s = time.monotonic() + 10
    while live.sink._clips.state.file is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert live.sink._clips.state.problem


def test_plain_motion_jpeg(served: Served) -> None:
    live = served()
    with socket.create_connection(("127.0.0.1", live.port), 5) as connection:
        connection.sendall(b"GET /fused.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        data = b""
        while data.count(b"--frame\r\n") < 3:
            data += connection.recv(65536)
    start, end = data.index(b"\xff\xd8"), data.index(b"\xff\xd9") + 2
    assert cv2.imdecode(np.frombuffer(data[start:end], np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)


def test_figures_for_monitoring(served: Served) -> None:
    live = served()
    document = json.loads(live.get("/status.json")[2])
    assert document["schema"] == "refusion-edge/stream-status/1"
    assert set(document["cameras"]) == {"ir", "vis"}
    text = live.get("/metrics")[2].decode()
    assert 'refusion_edge_camera_up{rig="default",camera="ir"} 1' in text
    statistics = Statistics()
    statistics.dropped("ir", 'a "cause"\n')
    figures = to_prometheus([RigFigures("gate", statistics.snapshot(), 0)])
    assert r'refusion_edge_camera_dropped_frames_total{rig="gate",camera="ir",cause="a \"cause\"\n"} 1' in figures
    for line in text.splitlines():
        assert line.startswith("# ") or (line.count(" ") >= 1 and float(line.rpartition(" ")[2]) >= 0)


def test_an_orchestrator_learns_whether_the_stream_works_and_nothing_else(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = served("view://0.0.0.0:0", token="secret")
    assert live.get("/status.json")[0] == 401
    statistics = live.sink._statistics
    assert live.get("/healthz")[0] == 200
    assert live.get("/readyz")[0] == 503
    image = np.zeros((8, 8), np.uint8)
    statistics.shown(FusedFrame(image, None, None, 0, 0, 0, "fused"))
    status, _, body = live.get("/readyz")
    assert (status, json.loads(body)) == (200, {"ok": True, "reason": ""})
    monkeypatch.setattr("refusion_edge.stream.statistics.SILENT_S", 0.0)
    assert live.get("/readyz")[0] == 503
    assert live.get("/healthz")[0] == 200
    # An engine that does not come back is a reason to restart.
    statistics.busy(is_busy=True)
    monkeypatch.setattr("refusion_edge.stream.statistics.STUCK_S", 0.0)
    assert live.get("/healthz")[0] == live.get("/readyz")[0] == 503
    statistics.busy(is_busy=False)
    assert live.get("/healthz")[0] == 200
    assert live.get("/healthz", Origin="http://evil.example")[0] == 403


def test_other_sites_and_names_are_kept_out(served: Served) -> None:
    live = served()
    assert live.get("/", Host="evil.example")[0] == 403  # another name that resolves to this machine
    assert live.get("/status.json", Origin="http://evil.example")[0] == 403
    assert live.get("/", Host=f"localhost:{live.port}")[0] == 200


def test_a_reverse_proxy_is_let_in_by_its_address(served: Served) -> None:
    proxied = {"Origin": "https://cameras.example"}  # what nginx passes on by default: the browser's origin, its own host
    assert served().get("/status.json", **proxied)[0] == 403
    live = served(allow_origins=("https://Cameras.example/",))
    assert live.get("/status.json", **proxied)[0] == 200
    assert live.get("/status.json", **{**proxied, "X-Forwarded-Host": "cameras.example"})[0] == 200
    assert live.get("/", Host="cameras.example")[0] == 200  # a proxy that passes the name on
    assert live.get("/status.json", Host="cameras.example", Origin="https://cameras.example")[0] == 200
    # Another scheme, port or site; and names that an attacker has made to resolve to this machine or to the proxy.
    for origin in ("http://cameras.example", "https://cameras.example:444", "https://evil.example", "null"):
        assert live.get("/status.json", Origin=origin)[0] == 403
    assert live.get("/", Host="evil.example")[0] == 403
    assert live.get("/", Host="evil.example", **{"X-Forwarded-Host": "cameras.example"})[0] == 403
    for forwarded in ("evil.example", "cameras.example.evil.example", "[", ""):
        assert live.get("/status.json", **{"X-Forwarded-Host": forwarded})[0] == 403


def test_the_socket_opens_behind_a_reverse_proxy(served: Served) -> None:
    async def first(port: int) -> bytes:
        async with aiohttp.ClientSession() as session:
            address, origin = f"http://127.0.0.1:{port}/ws", "https://cameras.example"
            async with session.ws_connect(address, origin=origin, max_msg_size=0) as viewer:
                message = await asyncio.wait_for(viewer.receive(), 10)
        return bytes(message.data)

    assert unpack(asyncio.run(first(served(allow_origins=("https://cameras.example",)).port)))[1]
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        asyncio.run(first(served().port))
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "address", ["cameras.example", "https://", "ftp://cameras.example", "https://a/b", "https://u:p@a", "*"]
)
def test_an_allowed_origin_has_to_be_the_address_of_a_site(address: str) -> None:
    with pytest.raises(UsageError):
        Live("view://127.0.0.1:0", allow_origins=(address,))


def test_viewers_hear_why_the_stream_ends() -> None:
    live = Live("view://127.0.0.1:0")

    live.sink.figures_of.ends("the cameras were sold")

    async def last() -> tuple[str, int | None]:
        address = f"http://127.0.0.1:{live.port}/ws"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as viewer:
            await asyncio.wait_for(viewer.receive(), 10)
            ending = asyncio.create_task(asyncio.to_thread(live.close))
            while (message := await asyncio.wait_for(viewer.receive(), 10)).type == aiohttp.WSMsgType.BINARY:
                pass
            closing = await asyncio.wait_for(viewer.receive(), 10)
            await ending
        return message.data, closing.data

    reason, code = asyncio.run(last())
    assert code == 1000
    assert json.loads(reason) == {"ended": "the cameras were sold"}


NODE = shutil.which("node")
# The page's script in a document of stand-ins, and what it shows after the events of its socket.
PAGE = """
const fs = require("fs");
const vm = require("vm");
const elements = {};
const make = (id) => ({ id, dataset: {}, hidden: true, textContent: "", classes: new Set(), addEventListener() {},
  disabled: false, setAttribute() {},
  classList: { toggle(name, on) { on ? elements[id].classes.add(name) : elements[id].classes.delete(name); } } });
const document = { getElementById: (id) => elements[id] ??= make(id), createElement: () => make("scratch"),
  querySelectorAll: () => [], addEventListener() {} };
let socket;
class WebSocket { constructor() { socket = this; } send() {} }
WebSocket.OPEN = 1;
let now = 1000;
const timers = [];
const context = { document, WebSocket, location: { search: "", href: "http://127.0.0.1/", hash: "" }, URL, history: {},
  setTimeout: () => 0, setInterval: (call) => timers.push(call), Date: { now: () => now }, console,
  matchMedia: () => ({ matches: false }) };
vm.createContext(context);
const script = fs.readFileSync(process.argv[1], "utf8");
vm.runInContext(script.replace("async function draw() {", "async function draw() { return;"), context);
const shown = () => ({ over: elements.images?.classes.has("over") ?? false, text: elements.over?.textContent ?? "",
  state: elements.state?.textContent ?? "", snapshot: !elements.snapshot?.disabled });
const seen = [];
socket.onopen();
socket.onmessage({ data: 1 });
seen.push(shown());
now += 5000;
timers.forEach((call) => call());
seen.push(shown());
socket.onmessage({ data: 1 });
seen.push(shown());
socket.onclose({});
seen.push(shown());
socket.onopen();
seen.push(shown());
socket.onmessage({ data: 1 });
socket.onmessage({ data: JSON.stringify({ ended: "the cameras were sold" }) });
socket.onclose({});
socket.onclose({});
seen.push(shown());
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_page_dims_a_picture_that_is_not_live() -> None:
    script = str(resources.files("refusion_edge.stream.outputs").joinpath("page", "page.js"))
    done = subprocess.run([str(NODE), "-e", PAGE, script], check=True, capture_output=True, text=True)
    live, silent, again, lost, waiting, ended = json.loads(done.stdout)
    assert (live["snapshot"], silent["snapshot"], ended["snapshot"]) == (True, False, False)
    assert (live["over"], live["text"]) == (again["over"], again["text"]) == (False, "")
    assert silent["over"]
    assert "No new picture" in silent["text"]
    assert ended["over"]
    assert "the cameras were sold" in ended["text"]
    assert ended["state"] == "ended"
    assert lost["over"]
    assert "disconnected" in lost["state"]
    assert "Waiting" in waiting["text"]


def test_a_view_bound_wider_needs_its_token(served: Served) -> None:
    live = served("view://0.0.0.0:0")
    token = live.said[0].rpartition("token=")[2]
    assert len(token) >= 16
    assert live.get("/")[0] == live.get("/metrics")[0] == live.get("/?token=wrong")[0] == 401
    status, headers, _ = live.get(f"/?token={token}")
    assert status == 200
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert "HttpOnly" in headers["Set-Cookie"]
    assert live.get("/page.js", Cookie=cookie)[0] == 200
    assert live.get("/metrics", Authorization=f"Bearer {token}")[0] == 200
    assert served(token="my-own").get("/")[0] == 401


def test_a_port_in_use_is_one_line(served: Served) -> None:
    live = served()
    with raises(OutputError, f"port {live.port}", remedy=f"view://127.0.0.1:{live.port + 1}"):
        served(f"view://127.0.0.1:{live.port}")


def test_many_viewers_and_a_stuck_one_do_not_slow_the_stream(served: Served) -> None:
    live = served()
    stuck = socket.create_connection(("127.0.0.1", live.port), 5)
    stuck.sendall(b"GET /fused.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")  # and never reads

    async def storm() -> list[list[bytes]]:
        return await asyncio.gather(*(watch(live.port, None, 5) for _ in range(12)))

    assert all(len(got) == 5 for got in asyncio.run(storm()))
    stuck.close()


def test_nothing_is_encoded_without_viewers(served: Served) -> None:
    live = served()
    time.sleep(0.3)
    assert live.sink._header == {}  # nothing was encoded


COLORS = """(() => { const canvas = document.getElementById("%s");
  return [...canvas.getContext("2d").getImageData(canvas.width - 2, canvas.height / 2, 1, 1).data].slice(0, 3); })()"""
CHOOSE = """(() => { const palette = document.getElementById("palette"); palette.value = "iron";
  palette.dispatchEvent(new Event("change")); })()"""
LIVE = "document.getElementById('state')?.textContent === 'live' && document.getElementById('figures').children.length > 6"
SMALL = """[...document.querySelectorAll("button, select, summary")].filter((each) => each.getClientRects().length)
  .filter((each) => { const box = each.getBoundingClientRect(); return box.width < 44 || box.height < 44; }).length"""


def near(color: list[int], expected: tuple[int, int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(color, expected, strict=True)) < 14


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_real_browser_shows_the_stream(served: Served) -> None:
    live = served(clips=Clips(Path("clips")))
    address = f"http://127.0.0.1:{live.port}/"
    with Browser() as browser:
        browser.open(f"{address}#side", (1000, 700))
        browser.wait_for(f"{LIVE} && byId('ir').width === 64")
        assert near(browser.evaluate(COLORS % "fused"), (255, 128, 0))  # as served, in RGB
        assert near(browser.evaluate(COLORS % "ir"), (255, 255, 255))
        browser.evaluate(CHOOSE)
        browser.evaluate("document.querySelector('[data-view=infrared]').click()")
        browser.wait_for("document.getElementById('fused').getClientRects().length === 0")
        time.sleep(0.3)
        assert browser.evaluate(COLORS % "ir") != [255, 255, 255]
        browser.evaluate("document.getElementById('record').click()")
        name = browser.wait_for("clip.file")
        time.sleep(0.3)
        browser.evaluate("document.getElementById('record').click()")
        browser.wait_for("!clip.file")
        assert frames_of(Path("clips", name)) > 2
        browser.evaluate("toggleFullscreen()")
        browser.wait_for("document.fullscreenElement === document.getElementById('stage')")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_failed_recording_is_news_once_and_only_to_those_who_watched(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_watch: object) -> None:
        raise DiskFullError("the disk is full", "free some space")

    monkeypatch.setattr("refusion_edge.stream.outputs.video.DiskWatch.check", full)
    live = served(clips=Clips(Path("clips")))
    address = f"http://127.0.0.1:{live.port}/"
    with Browser() as browser:
        browser.open(address, (1000, 700))
        browser.wait_for(LIVE)
        browser.evaluate("document.getElementById('record').click()")
        browser.wait_for("clip.problem")
        assert "disk is full" in browser.evaluate("byId('notice').textContent")
        # Somebody who stops a recording that has failed since the last picture.
        browser.evaluate("clip = { file: 'x.mp4', problem: '' }; toggleRecording()")
        browser.wait_for("clip.problem")
        time.sleep(0.3)
        assert "disk is full" in browser.evaluate("byId('notice').textContent")
        browser.open(address, (1000, 700))
        browser.wait_for(f"{LIVE} && clip.problem")
        assert browser.evaluate("byId('notice').hidden")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_picture_is_saved_where_the_viewer_is(served: Served, tmp_path: Path) -> None:
    live = served()
    with Browser() as browser:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.open(f"http://127.0.0.1:{live.port}/#side", (1000, 700))
        browser.wait_for(LIVE)
        browser.wait_for("['ir', 'vis', 'fused'].every((name) => byId(name).width === 64)")
        browser.evaluate("document.getElementById('snapshot').click()")
        deadline_s = time.monotonic() + 20
        while not (saved := list(tmp_path.glob("side-*.png"))) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        time.sleep(0.3)
    assert read_image(saved[0]).shape[:2] == (48, 3 * 64)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("size_wh", [(390, 844), (844, 390)], ids=["upright", "sideways"])
def test_a_phone_has_a_large_picture_and_large_buttons(served: Served, size_wh: tuple[int, int]) -> None:
    live = served()
    with Browser() as browser:
        browser.open(f"http://127.0.0.1:{live.port}/", size_wh, is_phone=True)
        browser.wait_for(LIVE)
        assert browser.evaluate(SMALL) == 0
        box = browser.evaluate(
            "(() => { const { width, height } = byId('fused').getBoundingClientRect(); return [width, height]; })()"
        )
        # As wide as a phone that is held upright, or as high as one on its side.
        assert box[0] > 0.95 * size_wh[0] if size_wh[0] < size_wh[1] else box[1] > 0.9 * size_wh[1]
        assert browser.evaluate("document.documentElement.scrollWidth") <= size_wh[0]
        live.sink.figures_of.ends("the cameras were sold")
        live.close()
        assert "the cameras were sold" in browser.wait_for("document.getElementById('over').textContent")


def test_the_stream_serves_and_ends_with_its_viewers(stream: Callable[..., Any]) -> None:
    report, _ = stream(ir=camera("ir"), vis=camera("vis"), frames=5, outputs=("view://127.0.0.1:0",))
    assert report["pairs"]["shown"] == 5
    assert not [thread for thread in threading.enumerate() if thread.name == "view"]


@pytest.mark.parametrize(
    "header", [b"Authorization: Bearer \xff\xfe", b"Host: 127.0.0.1:abc", b"Cookie: refusion_edge_token=\xff"]
)
def test_malformed_headers_are_answered_and_nothing_more(
    served: Served, header: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    live = served(token="a token")
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        host = b"" if header.startswith(b"Host") else b"Host: 127.0.0.1\r\n"
        connection.sendall(b"GET / HTTP/1.1\r\n" + host + header + b"\r\nConnection: close\r\n\r\n")
        answer = connection.recv(1024)
    assert answer.split()[1] in (b"400", b"401")
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    assert live.get("/?token=a%20token")[0] == 200


@pytest.mark.parametrize(
    "request_",
    [b"G\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /?token=secret&" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
     b"\x16\x03\x01\x02\0\x01\0"],
    ids=["method", "hosts", "long", "tls"],
)  # fmt: skip
def test_malformed_requests_are_not_logged(served: Served, request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    live = served(token="secret")
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(request_)
        assert connection.recv(1024).split()[1] == b"400"
    assert not caplog.records


@pytest.mark.parametrize(("address", "code"), [("/control?token=secret", b"400"), ("/control", b"401")])
def test_damaged_bodies_are_not_logged(served: Served, address: str, code: bytes, caplog: pytest.LogCaptureFixture) -> None:
    live = served(token="secret")
    head = f"POST {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde".encode())
        assert connection.recv(1024).split()[1] == code
        while connection.recv(1024):  # until the server has closed, and has said what it has to say
            pass
    assert not caplog.records


def test_a_fault_of_ours_is_logged(served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    live = served()
    monkeypatch.setattr(ViewSink, "status", mock.Mock(side_effect=ZeroDivisionError))
    assert live.get("/status.json")[0] == 500
    assert ZeroDivisionError in [record.exc_info[0] for record in caplog.records if record.exc_info]


def test_a_viewer_that_never_reads_loses_its_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.stream.outputs.view._MAX_WAITING_S", 0.3)
    monkeypatch.setattr("refusion_edge.stream.outputs.view._jpeg", lambda _image: bytes(1 << 20))
    live = served()
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(b"GET /fused.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        seen = set()
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s and 0 not in seen - {None}:
            viewers = json.loads(live.get("/status.json")[2])["viewers"]
            seen.add(viewers if viewers or 1 in seen else None)
            time.sleep(0.05)
    assert {0, 1} <= seen


def test_a_socket_that_never_reads_loses_its_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it keeps sending, which answers every heartbeat."""
    monkeypatch.setattr("refusion_edge.stream.outputs.view._MAX_WAITING_S", 0.3)
    monkeypatch.setattr("refusion_edge.stream.outputs.view._jpeg", lambda _image: bytes(1 << 20))
    live, pong = served(), b"\x8a\x80" + bytes(4)
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        key = b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        connection.sendall(b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\n" + upgrade + key + b"\r\n")
        deadline_s, is_open = time.monotonic() + 8, True
        while is_open and time.monotonic() < deadline_s:
            try:
                connection.sendall(pong)
            except OSError:
                is_open = False
            time.sleep(0.02)
    assert not is_open
    assert json.loads(live.get("/status.json")[2])["viewers"] == 0


@pytest.mark.parametrize(
    "text", ["[" * 4000, '{"images": ["fused", "\\ud800"]}', '{"images": 1e999}'], ids=["deep", "half", "huge"]
)
def test_a_strange_wish_of_a_viewer_is_ignored(served: Served, text: str, caplog: pytest.LogCaptureFixture) -> None:
    live = served()

    async def ask() -> bool:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{live.port}/ws") as viewer:
            await viewer.send_str(text)
            return all([(await viewer.receive(5)).type == aiohttp.WSMsgType.BINARY for _ in range(5)])

    assert asyncio.run(ask())
    assert not caplog.records


def test_a_request_that_does_not_end_is_answered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.stream.outputs.view._MAX_WAITING_S", 0.2)
    live = served()
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        head = b"POST /control HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b"{")
        assert connection.recv(1024).split()[1] == b"408"


def idle(port: int, count: int, greeting: bytes = b"") -> list[socket.socket]:
    """Connections that send this and then nothing."""
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), 5)
        connection.settimeout(5)
        connection.sendall(greeting)
        opened.append(connection)
    return opened


def closed(connections: list[socket.socket]) -> int:
    """How many of them the other side has closed within 5 s."""
    count = 0
    for connection in connections:
        try:
            while connection.recv(4096):
                pass
            count += 1
        except ConnectionResetError:
            count += 1
        except TimeoutError:
            pass
        connection.close()
    return count


@pytest.mark.parametrize(
    "greeting", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"\x16\x03\x01"], ids=["idle", "half", "tls"]
)
def test_connections_that_are_not_authorized_take_no_descriptors(served: Served, greeting: bytes) -> None:
    live = served("view://0.0.0.0:0", token="secret", limits=Limits(total=40, waiting=8, waiting_s=0.5))
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = idle(live.port, 60, greeting)
    # Own ends, and those that were let in.
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 60 + 8 + 2
    assert closed(opened) == 60
    assert live.get("/?token=secret")[0] == 200


def test_a_new_viewer_takes_the_place_of_who_waits_longest(served: Served) -> None:
    live = served("view://0.0.0.0:0", token="secret", limits=Limits(total=6, waiting=6, waiting_s=60.0))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connection) for connection in idle(live.port, 6)]
        assert live.get("/?token=secret")[0] == 200
        assert closed(opened[:1]) == 1


def test_a_connection_put_out_when_it_is_just_ready_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect() -> bytes:
        loop, connections = asyncio.get_running_loop(), Connections(Limits(waiting_s=60.0))
        ready = loop.connect_accepted_socket

        async def put_out(*arguments: Any, **options: Any) -> Any:
            made = await ready(*arguments, **options)
            connections.close()
            return made

        monkeypatch.setattr(loop, "connect_accepted_socket", put_out)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            accepting = loop.create_task(connections.accept(listening, asyncio.Protocol))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            try:
                return await asyncio.wait_for(reader.read(), 10)
            except ConnectionResetError:
                return b""
            finally:
                writer.close()
                accepting.cancel()

    assert asyncio.run(connect()) == b""


def test_who_was_authorized_may_be_slow(served: Served) -> None:
    live = served("view://0.0.0.0:0", token="secret", limits=Limits(total=6, waiting=2, waiting_s=0.3))

    async def look() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{live.port}/ws?token=secret") as socket_,
        ):
            await asyncio.sleep(0.8)
            return len((await socket_.receive(5)).data)

    assert asyncio.run(look()) > 100


@pytest.fixture
def certificate() -> tuple[Path, Path]:
    """A certificate for this machine, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    return Path("cert.pem"), Path("key.pem")


def test_the_page_is_served_encrypted(served: Served, certificate: tuple[Path, Path]) -> None:
    live = served("view://0.0.0.0:0", token="secret", tls=certificate, limits=Limits(waiting_s=0.5))
    assert "https://" in live.said[0]
    trusting = ssl.create_default_context(cafile="cert.pem")

    async def look() -> tuple[int, str, bytes]:
        # Nobody waits for those that never greet, or speak plainly.
        silent = idle(live.port, 5) + idle(live.port, 3, b"GET / HTTP/1.1\r\n\r\n")
        async with aiohttp.ClientSession() as session:
            address = f"https://localhost:{live.port}"
            async with session.get(f"{address}/?token=secret", ssl=trusting) as answer:
                status, cookie = answer.status, answer.headers["Set-Cookie"]
            async with session.ws_connect(f"{address}/ws?token=secret", ssl=trusting) as socket_:
                message = (await socket_.receive(5)).data
        assert await asyncio.to_thread(closed, silent) == 8
        return status, cookie, message

    status, cookie, message = asyncio.run(look())
    assert status == 200
    assert "Secure" in cookie
    assert unpack(message)[1]["fused"].shape == (48, 64, 3)


def client_hello() -> bytes:
    """How a client greets a server that it wants to talk to over TLS."""
    client = ssl.create_default_context()
    there = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), there, server_hostname="localhost").do_handshake()
    return there.read()


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(client_hello(), id="half a handshake"),
        pytest.param(client_hello()[:40], id="half a greeting"),
        pytest.param(b"GET /?token=secret HTTP/1.1\r\nHost: localhost\r\n\r\n", id="plain HTTP"),
        pytest.param(b"\x16\x03\x01\xff\xff" + bytes(65_535), id="record too long"),
        pytest.param(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03" + bytes(16_378), id="greeting of 16 MiB"),
        pytest.param(b"\x16\x03\x01\x00\x00" * 5000, id="empty records"),
        pytest.param(b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37), id="SSL 2"),
        pytest.param(client_hello() + b"\x14\x03\x03\x00\x01\x01" * 5000, id="changes of cipher"),
        pytest.param(b"\x17\x03\x03\x00\x10" + bytes(16), id="data before the handshake"),
    ],
)
def test_attacks_on_the_handshake_end_within_the_time_limit(
    served: Served, certificate: tuple[Path, Path], greeting: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    live = served("view://0.0.0.0:0", token="secret", tls=certificate, limits=Limits(waiting=8, waiting_s=0.5))
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = []
    for _ in range(8):
        connection = socket.create_connection(("127.0.0.1", live.port), 5)
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):
            connection.sendall(greeting)
        opened.append(connection)
    started_s = time.monotonic()
    assert closed(opened) == 8
    assert time.monotonic() - started_s < 4
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    trusting = ssl.create_default_context(cafile="cert.pem")
    with urllib.request.urlopen(f"https://localhost:{live.port}/?token=secret", context=trusting, timeout=5) as answer:
        assert answer.status == 200
    assert not caplog.records


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_versions_of_tls_are_refused(served: Served, certificate: tuple[Path, Path], version: str) -> None:
    live = served("view://0.0.0.0:0", token="secret", tls=certificate)
    client = ssl.create_default_context(cafile="cert.pem")
    client.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.minimum_version = client.maximum_version = ssl.TLSVersion[version]
    with socket.create_connection(("127.0.0.1", live.port), 5) as connection, pytest.raises((ssl.SSLError, ConnectionError)):
        client.wrap_socket(connection, server_hostname="localhost")


def test_a_certificate_out_of_its_time_is_announced(certificate: tuple[Path, Path], served: Served) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization

    cert, key = certificate
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key()).serial_number(1)
    made = made.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2020, 2, 1))
    assert len(served("view://127.0.0.1:0", tls=certificate).said) == 1
    cert.write_bytes(made.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    assert len(served("view://127.0.0.1:0", tls=certificate).said) == 2


@pytest.mark.parametrize("change", ["swapped", "missing", "another", "of its kind", "weak", "passphrase", "empty"])
def test_a_certificate_that_cannot_be_used_is_refused(certificate: tuple[Path, Path], change: str) -> None:
    cert, key = certificate
    if change == "swapped":
        cert, key = key, cert
    elif change == "missing":
        key = Path("none.pem")
    elif change == "another":
        subprocess.run(["openssl", "genrsa", "-out", "key.pem", "2048"], check=True, capture_output=True)
    elif change == "of its kind":
        make = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out key.pem"
        subprocess.run(make.split(), check=True, capture_output=True)
    elif change == "weak":
        make = "openssl req -x509 -newkey rsa:512 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
        subprocess.run(make.split(), check=True, capture_output=True)
    elif change == "passphrase":
        make = "openssl pkey -in key.pem -aes256 -passout pass:secret -out locked.pem"
        subprocess.run(make.split(), check=True, capture_output=True)
        key = Path("locked.pem")
    else:
        cert.write_bytes(b"")
    with raises(InputError, ".pem"):
        ViewSink(parse_output("view://127.0.0.1:0"), Statistics(), ThermalGain(), tls=(cert, key))
