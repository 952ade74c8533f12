"""Take the pictures of the browser view that the documentation shows, of `test://` fused live, in headless Chromium.

python -m examples.view_picture --view side -o docs/images/view.png
python -m examples.view_picture --moving -o docs/images/stream.webp
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

import cv2
from PIL import Image

from examples.browser import BROWSER, Browser
from refusion_edge.stream.fused_stream import open_stream

WIDTH, HEIGHT = 640, 480
# A busy machine loses frames, but pairs none of different times.
_MOST_SKEW_MS = 5
_LIVE = "document.getElementById('state')?.textContent === 'live' && document.getElementById('figures').children.length > 6"
# The moving picture: every frame of it is a fused one of 5 s at 10 frames per second, in a smaller size.
_MOVING_S, _MOVING_HZ, _MOVING_WH = 5, 10, (480, 360)


def main() -> None:
    """Run the stream and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="fast", help="network (default: fast)")
    parser.add_argument("--view", default="side", help="view: fused, infrared, side, blend or edges (default: side)")
    parser.add_argument("--size", default="1280x620", help="width and height of the window (default: 1280x620)")
    parser.add_argument("--moving", action="store_true", help="save a moving picture of the fused frames instead of the page")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write (.png, or .webp if moving)")
    options = parser.parse_args()
    size = f"width={WIDTH}&height={HEIGHT}"
    if options.moving:
        write_moving(options.output, options.network, size)
        return
    if BROWSER is None:
        sys.exit("there is no chromium on this machine")
    said: list[str] = []
    running = open_stream(
        f"test://ir?{size}",
        f"test://vis?{size}",
        outputs="view://127.0.0.1:0",
        network=options.network,
        announce=said.append,
        max_skew_ms=_MOST_SKEW_MS,
    )
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while thread.is_alive() and not running.count:
            time.sleep(0.1)
        address = next(text for text in said if "http://" in text).rpartition(" ")[2]
        width, height = map(int, options.size.split("x"))
        with Browser() as browser:
            browser.open(f"{address}#{options.view}", (width, height))
            browser.wait_for(_LIVE)
            time.sleep(2.0)
            browser.screenshot(options.output)
    finally:
        running.stop()
        thread.join()


def write_moving(path: Path, network: str, size: str) -> None:
    """Fuse frames that wait for the network, as those of files do, and write them as an animated WebP."""
    frames = _MOVING_S * _MOVING_HZ
    sides = {side: f"test://{side}?{size}&live=0&rate={_MOVING_HZ}&frames={frames}" for side in ("ir", "vis")}
    with open_stream(**sides, network=network) as running:
        images = [Image.fromarray(cv2.resize(frame.rgb, _MOVING_WH, interpolation=cv2.INTER_AREA)) for frame in running]
    images[0].save(
        path, "WEBP", save_all=True, append_images=images[1:], duration=1000 // _MOVING_HZ, loop=0, quality=55, method=6
    )
    print(f"{path}: {len(images)} frames, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
