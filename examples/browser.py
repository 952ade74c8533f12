"""A headless Chromium, driven by its debugging protocol, to take pictures of the browser view and to test it.

For example::

    with Browser() as browser:
        browser.open("http://127.0.0.1:8080/#side", (844, 390), is_phone=True)
        browser.wait_for("document.getElementById('state').textContent === 'live'")
        browser.screenshot("page.png")
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from typing_extensions import Self

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The program, or None if there is none."""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
    "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip
_START_S, _ANSWER_S, _POLL_S = 60.0, 60.0, 0.1


class Browser:
    """One page of a browser. Use it from one thread, as a context manager.

    Raises:
        FileNotFoundError: There is no Chromium.
    """

    def __enter__(self) -> Self:
        if BROWSER is None:
            raise FileNotFoundError("there is no chromium on this machine")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [BROWSER, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"], stderr=subprocess.DEVNULL
        )
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "_session"):
            self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(10)
        self._profile.cleanup()

    def open(self, address: str, size_wh: tuple[int, int], *, is_phone: bool = False, scale: float = 1.0) -> None:
        """Open a page.

        Args:
            address: Its address.
            size_wh: Width and height of the window, in CSS pixels.
            is_phone: Whether to act as a phone with a touch screen.
            scale: Pixels per CSS pixel.
        """
        width, height = size_wh
        turned = {"type": "landscapePrimary", "angle": 90} if width > height else {"type": "portraitPrimary", "angle": 0}
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone,
            screenOrientation=turned,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        # A change of the part after # alone would not load it again.
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript; a promise is awaited, and a user has just touched the page.

        Raises:
            RuntimeError: It failed.
        """
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )  # fmt: skip
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"].get("exception", {}).get("description", answer)))
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30.0) -> Any:
        """Wait until an expression is true, and return its value.

        Raises:
            TimeoutError: It is not true in time.
        """
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            if value := self.evaluate(expression):
                return value
            time.sleep(_POLL_S)
        raise TimeoutError(f"not true within {seconds:g} s: {expression}")

    def screenshot(self, path: str | Path) -> None:
        """Save a picture of the page as PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, see https://chromedevtools.github.io/devtools-protocol."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), _ANSWER_S))

    async def _connect(self) -> None:
        port, deadline_s = Path(self._profile.name, "DevToolsActivePort"), time.monotonic() + _START_S
        while not (port.exists() and port.read_text().count("\n")):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise TimeoutError("chromium did not start")
            await asyncio.sleep(_POLL_S)
        host = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        self._session = aiohttp.ClientSession()
        async with self._session.put(f"{host}/json/new?about:blank") as answer:
            address = (await answer.json())["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(address, max_msg_size=0)
        await self._call("Page.enable", {})

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._socket.receive_str())
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
