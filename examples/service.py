"""An HTTP service on asyncio that fuses two cameras: the newest frame as JPEG, and its data as JSON.

    python -m examples.service --ir IR --vis VIS --port 8000
    curl http://127.0.0.1:8000/frame.jpg -o frame.jpg
    curl http://127.0.0.1:8000/frame.json

The stream runs as long as the service. If the stream fails, the service answers 503 with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncGenerator

import cv2
from aiohttp import web

import refusion_edge as rf
from refusion_edge.stream.fused_stream import FusedStream

_FIRST_FRAME_S = 30.0


class Newest:
    """The newest frame of a stream, or why there is none."""

    def __init__(self) -> None:
        self.frame: rf.FusedFrame | None = None
        self.failure = ""
        self._changed = asyncio.Event()

    async def follow(self, stream: FusedStream) -> None:
        """Keep the newest frame until the stream ends."""
        try:
            async for frame in stream:
                self.frame = frame
                self._changed.set()
            self.failure = "the stream has ended"
        except rf.RefusionError as error:
            self.failure = str(error)
        finally:
            self._changed.set()

    async def get(self) -> rf.FusedFrame:
        """Return the newest frame; waits for the first one.

        Raises:
            HTTPServiceUnavailable: There is none.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _FIRST_FRAME_S)
        if self.frame is None or self.failure:
            raise web.HTTPServiceUnavailable(text=self.failure or "there is no frame yet")
        return self.frame


NEWEST = web.AppKey("newest", Newest)


async def frame_jpg(request: web.Request) -> web.Response:
    """Answer with the newest frame as JPEG."""
    frame = await request.app[NEWEST].get()
    # Encoding takes milliseconds, in which the event loop has other things to do.
    _, data = await asyncio.to_thread(cv2.imencode, ".jpg", frame.image)
    return web.Response(body=data.tobytes(), content_type="image/jpeg")


async def frame_json(request: web.Request) -> web.Response:
    """Answer with what is known about the newest frame."""
    frame = await request.app[NEWEST].get()
    return web.json_response(
        {"number": frame.number, "time_s": frame.time_s, "skew_ms": frame.skew_ms, "mode": frame.mode, "marks": frame.marks}
    )


def make_app(stream: FusedStream) -> web.Application:
    """Make a service that runs a stream while it is up."""

    async def run(app: web.Application) -> AsyncGenerator[None, None]:
        app[NEWEST] = newest = Newest()
        task = asyncio.create_task(newest.follow(stream))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app = web.Application()
    app.cleanup_ctx.append(run)
    app.add_routes([web.get("/frame.jpg", frame_jpg), web.get("/frame.json", frame_json)])
    return app


def main() -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ir", required=True, metavar="URI", help="infrared source, as 'refusion-edge stream' takes it")
    parser.add_argument("--vis", required=True, metavar="URI", help="visible source")
    parser.add_argument("--port", type=int, default=8000, help="port of the service on 127.0.0.1 (default: 8000)")
    options = parser.parse_args()
    web.run_app(make_app(rf.stream(options.ir, options.vis, network="auto")), host="127.0.0.1", port=options.port)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
