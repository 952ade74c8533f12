"""The browser view: images, figures, access, and many viewers; in a real browser if one is installed."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the browser view needs the extra [stream]")

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, OutputError, UsageError
from refusion_edge.images.io import read_image
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.outputs.connections import LIMITS, Limits
from refusion_edge.stream.outputs.prometheus import RigFigures, to_prometheus
from refusion_edge.stream.outputs.view import ViewSink
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import parse_output
from tests.raising import raises
from tests.stream.conftest import camera

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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
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
    header, _ = unpack(asyncio.run(watch(live.port, {"polarity": "black", "images": ["fused"]}))[-1])
    assert live.gain.polarity == header["polarity"] == "black"
    asyncio.run(watch(live.port, {"polarity": "purple", "images": "all", "x": [1]}))
    assert live.gain.polarity == "black"


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

    async def last() -> tuple[int | None, str]:
        address = f"http://127.0.0.1:{live.port}/ws"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as viewer:
            await asyncio.wait_for(viewer.receive(), 10)
            ending = asyncio.create_task(asyncio.to_thread(live.close))
            while (message := await asyncio.wait_for(viewer.receive(), 10)).type == aiohttp.WSMsgType.BINARY:
                pass
            await ending
        return message.data, str(message.extra)

    code, reason = asyncio.run(last())
    assert code == 1000
    assert "ended" in reason


NODE = shutil.which("node")
# The page's script in a document of stand-ins, and what it shows after the events of its socket.
PAGE = """
const fs = require("fs");
const vm = require("vm");
const elements = {};
const make = (id) => ({ id, dataset: {}, hidden: true, textContent: "", classes: new Set(), addEventListener() {},
  classList: { toggle(name, on) { on ? elements[id].classes.add(name) : elements[id].classes.delete(name); } } });
const document = { getElementById: (id) => elements[id] ??= make(id), createElement: () => make("scratch"),
  querySelectorAll: () => [], addEventListener() {} };
let socket;
class WebSocket { constructor() { socket = this; } send() {} }
WebSocket.OPEN = 1;
let now = 1000;
const timers = [];
const context = { document, WebSocket, location: { search: "", href: "http://127.0.0.1/", hash: "" }, URL, history: {},
  setTimeout: () => 0, setInterval: (call) => timers.push(call), Date: { now: () => now }, console };
vm.createContext(context);
const script = fs.readFileSync(process.argv[1], "utf8");
vm.runInContext(script.replace("async function draw() {", "async function draw() { return;"), context);
const shown = () => ({ over: elements.images?.classes.has("over") ?? false, text: elements.over?.textContent ?? "",
  state: elements.state?.textContent ?? "" });
const seen = [];
socket.onopen();
socket.onmessage({ data: 1 });
seen.push(shown());
now += 5000;
timers.forEach((call) => call());
seen.push(shown());
socket.onmessage({ data: 1 });
seen.push(shown());
socket.onclose({ reason: "the stream has ended" });
seen.push(shown());
socket.onclose({ reason: "" });
seen.push(shown());
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_page_dims_a_picture_that_is_not_live() -> None:
    script = str(resources.files("refusion_edge.stream.outputs").joinpath("page", "page.js"))
    done = subprocess.run([str(NODE), "-e", PAGE, script], check=True, capture_output=True, text=True)
    live, silent, again, ended, lost = json.loads(done.stdout)
    assert (live["over"], live["text"]) == (again["over"], again["text"]) == (False, "")
    assert silent["over"]
    assert "no new picture" in silent["text"]
    assert ended["over"]
    assert "the stream has ended" in ended["text"]
    assert "the stream has ended" in ended["state"]
    assert lost["over"]
    assert "disconnected" in lost["text"]


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


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1000,700",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_real_browser_shows_the_stream(served: Served, tmp_path: Path) -> None:
    live = served()
    browser = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path}/profile"]

    def colors(view: str, shown: Callable[[Array], bool]) -> Array:
        shot = tmp_path / f"{view}.png"
        address = f"http://127.0.0.1:{live.port}/#{view}"
        pixels = np.zeros((1, 3), int)
        # Virtual time does not wait for the network of a busy machine, so try again with more of it.
        for budget_ms in (4_000, 20_000, 60_000):
            words = [*browser, f"--virtual-time-budget={budget_ms}", f"--screenshot={shot}", address]
            subprocess.run(words, check=True, capture_output=True, timeout=600)
            pixels = read_image(shot)[..., :3].reshape(-1, 3).astype(int)
            if shown(pixels):
                break
        return pixels

    def share(pixels: Array, color: tuple[int, int, int]) -> float:
        return float((np.abs(pixels - color).max(axis=1) < 12).mean())

    fused = (255, 128, 0)  # as served, in RGB
    grays = [(gray, gray, gray) for gray in range(40, 255, 30)]
    alone = colors("fused", lambda pixels: share(pixels, fused) > 0.2)
    side = colors("side", lambda pixels: share(pixels, fused) > 0.03 and all(share(pixels, gray) > 0 for gray in grays))
    assert share(alone, fused) > 0.2
    assert 0.03 < share(side, fused) < 0.6 * share(alone, fused)
    # The infrared ramp contains every gray level.
    for gray in grays:
        assert share(side, gray) > share(alone, gray)


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
    opened = idle(live.port, 6)
    assert live.get("/?token=secret")[0] == 200
    assert closed(opened[:1]) == 1
    for connection in opened[1:]:
        connection.close()


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


@pytest.mark.parametrize("change", ["swapped", "missing", "another", "empty"])
def test_a_certificate_that_cannot_be_used_is_refused(certificate: tuple[Path, Path], change: str) -> None:
    cert, key = certificate
    if change == "swapped":
        cert, key = key, cert
    elif change == "missing":
        key = Path("none.pem")
    elif change == "another":
        subprocess.run(["openssl", "genrsa", "-out", "key.pem", "2048"], check=True, capture_output=True)
    else:
        cert.write_bytes(b"")
    with raises(InputError, ".pem"):
        ViewSink(parse_output("view://127.0.0.1:0"), Statistics(), ThermalGain(), tls=(cert, key))
