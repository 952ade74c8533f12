"""Program for the system's Python: runs a GStreamer pipeline and writes its frames, with their times, to standard output.

Imports nothing from refusion_edge. The pipeline comes from the environment. Prints ``ready``, or the error in one line; then
for each frame a header (format, width, height, bytes, nanoseconds of the monotonic clock) and its pixels, without row padding.
A frame of the format ``end`` marks the end of the pipeline, with the reason in place of pixels. Exits when standard input
closes.
"""

import importlib
import os
import struct
import sys
import threading
import time
from typing import Any

HEADER = struct.Struct("<10sIIIq")
_NEEDS_PACKAGES, _BAD_PIPELINE = 3, 4
_BYTES = {"BGR": 3, "GRAY8": 1, "GRAY16_LE": 2}
_SINK = "videoconvert ! appsink name=refusion max-buffers=2 drop=true caps=video/x-raw,format=(string){BGR,GRAY8,GRAY16_LE}"
_WAIT_NS = 200_000_000


def main() -> int:
    """Read frames until standard input closes or the pipeline ends."""
    try:
        gi = importlib.import_module("gi")
        for name in ("Gst", "GstApp", "GstVideo"):
            gi.require_version(name, "1.0")
        gst, _, video = (importlib.import_module(f"gi.repository.{name}") for name in ("Gst", "GstApp", "GstVideo"))
    except (ImportError, ValueError) as error:
        print(f"needs {error}", flush=True)
        return _NEEDS_PACKAGES
    gst.init(None)
    try:
        pipeline = gst.parse_launch(f"{os.environ.pop('REFUSION_EDGE_PIPELINE')} ! {_SINK}")
    except Exception as error:  # GLib's own exception type, which only exists after the import
        print(" ".join(str(getattr(error, "message", error)).split()), flush=True)
        return _BAD_PIPELINE
    sink, clock = pipeline.get_by_name("refusion"), gst.SystemClock.obtain()
    pipeline.use_clock(clock)
    # Frames of a camera are taken as they come; files play at their own speed.
    sink.set_property("sync", pipeline.set_state(gst.State.PAUSED) != gst.StateChangeReturn.NO_PREROLL)
    if pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
        print(_reason(gst, pipeline) or "the pipeline does not start", flush=True)
        pipeline.set_state(gst.State.NULL)
        return _BAD_PIPELINE
    print("ready", flush=True)
    threading.Thread(target=_end_with_input, daemon=True).start()
    out = sys.stdout.buffer
    while True:
        sample = sink.emit("try-pull-sample", _WAIT_NS)
        if sample is not None:
            header, pixels = _frame(gst, video, pipeline, sample)
            out.write(header + pixels)
            out.flush()
            continue
        reason = _reason(gst, pipeline)
        if reason or sink.get_property("eos"):
            out.write(HEADER.pack(b"end", 0, 0, len(reason.encode()), 0) + reason.encode())
            out.flush()
            pipeline.set_state(gst.State.NULL)
            os._exit(0)  # an ordinary exit would wait for the thread that reads standard input


def _frame(gst: Any, video: Any, pipeline: Any, sample: Any) -> tuple[bytes, bytes]:
    info = video.VideoInfo.new_from_caps(sample.get_caps())
    buffer, name = sample.get_buffer(), info.finfo.name
    stride, row = info.stride[0], info.width * _BYTES[name]
    data = buffer.extract_dup(0, buffer.get_size())
    if stride != row:
        data = b"".join(data[line * stride : line * stride + row] for line in range(info.height))
    # Running time of the buffer: its capture time, for sources that set it.
    running = sample.get_segment().to_running_time(gst.Format.TIME, buffer.pts) if buffer.pts != gst.CLOCK_TIME_NONE else -1
    known = 0 <= running < gst.CLOCK_TIME_NONE
    time_ns = pipeline.get_base_time() + running if known else time.monotonic_ns()
    data = data[: row * info.height]
    return HEADER.pack(name.encode(), info.width, info.height, len(data), time_ns), data


def _reason(gst: Any, pipeline: Any) -> str:
    """Why the pipeline failed, in one line; empty if it did not fail."""
    message = pipeline.get_bus().timed_pop_filtered(0, gst.MessageType.ERROR)
    return "" if message is None else " ".join(message.parse_error()[0].message.split())


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
