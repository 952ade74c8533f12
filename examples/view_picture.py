"""Take a picture of the browser view: two cameras that pan over a rendered street, fused live, in headless Chromium.

python -m examples.view_picture --network fast -o docs/images/view.png
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.stream.frames import SECOND, Side
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.stream.sources import synthetic

WIDTH, HEIGHT = 640, 480
_ENLARGED, _PAN_PX_S, _PAN_PX = 1.9, 12.0, 60.0
# Counts of the infrared camera per gray level, and the noise of both in counts and levels.
_COUNTS, _BASE, _NOISE = 8.0, 20_000.0, {"ir": 5.0, "vis": 2.0}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


class StreetPainter:
    """Draws a rendered street as one of the cameras sees it, in place of the scene of ``test://``."""

    def __init__(self, _scene: synthetic.Scene, side: Side) -> None:
        paths = next(paths for paths in sample_paths("ir_vis") if paths.name == "night")
        image = read_image(paths.a if side == "ir" else paths.b).astype(np.float32)
        self._side = side
        self._image = cv2.resize(image, None, fx=_ENLARGED, fy=_ENLARGED, interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(side == "ir").normal(0, _NOISE[side], (8, HEIGHT, WIDTH, *image.shape[2:]))
        self._noise: Float32Array = noise.astype(np.float32)

    def paint(self, time_ns: int) -> Array:
        """The image at a time: infrared counts, (H, W) uint16, or visible, (H, W, 3) BGR uint8."""
        seconds = time_ns / SECOND
        left = _PAN_PX / 2 * (1 + np.sin(2 * _PAN_PX_S / _PAN_PX * seconds))
        place = np.array([[1, 0, left], [0, 1, 30]], np.float32)
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        window = cv2.warpAffine(self._image, place, (WIDTH, HEIGHT), flags=how, borderMode=cv2.BORDER_REPLICATE)
        noise = self._noise[int(seconds * 30) % len(self._noise)]
        if self._side == "ir":
            return (_BASE + _COUNTS * window + noise).round().astype(np.uint16)
        return np.ascontiguousarray((window + noise).round().clip(0, 255).astype(np.uint8)[..., ::-1])


def main() -> None:
    """Run the stream and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="fast", help="network (default: fast)")
    parser.add_argument("--view", default="side", help="view of the page: fused, side, blend or edges (default: side)")
    parser.add_argument("--size", default="1100,560", help="size of the window (default: 1100,560)")
    parser.add_argument("--port", type=int, default=8096, help="port of the browser view (default: 8096)")
    parser.add_argument("-o", "--output", default="docs/images/view.png", help="file to write (default: docs/images/view.png)")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(_BROWSERS)} is installed")
    address = f"127.0.0.1:{options.port}"
    settings = StreamSettings(
        ir="test://ir", vis="test://vis", outputs=(f"view://{address}",), network=options.network, smooth_s=0.5
    )
    with mock.patch.object(synthetic, "Painter", StreetPainter), tempfile.TemporaryDirectory() as profile:
        session = StreamSession(settings)
        stream = threading.Thread(target=session.run)
        stream.start()
        try:
            time.sleep(5.0)
            words = [
                browser, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={options.size}",
                "--virtual-time-budget=60000", f"--screenshot={Path(options.output).resolve()}",
                f"http://{address}/#{options.view}",
            ]  # fmt: skip
            subprocess.run(words, check=True, capture_output=True, timeout=300)
        finally:
            session.stop.set()
            stream.join()


if __name__ == "__main__":
    main()
