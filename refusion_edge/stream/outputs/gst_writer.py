"""Program for the system's Python: reads raw frames from standard input and sends them to a GStreamer pipeline.

Imports nothing from refusion_edge. The pipeline comes from the environment, without its source. Prints ``ready``, or the error
in one line. Each frame is a header (format, width, height, bytes, nanoseconds since the first frame) and its pixels, with rows
as GStreamer lays them out. When standard input closes, the pipeline ends in order, so that its files are complete. Exit codes:
3 without GStreamer, 4 for a pipeline that does not start, 5 for one that failed, whose reason is the last line.
"""

import importlib
import os
import struct
import sys
import threading
from typing import Any

HEADER = struct.Struct("<10sIIIq")
_NEEDS_PACKAGES, _BAD_PIPELINE, _FAILED = 3, 4, 5
_SOURCE = "appsrc name=refusion is-live={live} format=time block=true max-buffers=2"


def main() -> int:
    """Write frames until standard input closes or the pipeline fails."""
    try:
        gi = importlib.import_module("gi")
        for name in ("Gst", "GstApp"):
            gi.require_version(name, "1.0")
        gst, _ = (importlib.import_module(f"gi.repository.{name}") for name in ("Gst", "GstApp"))
    except (ImportError, ValueError) as error:
        print(f"needs {error}", flush=True)
        return _NEEDS_PACKAGES
    gst.init(None)
    is_live = sys.argv[1] == "live"
    try:
        pipeline = gst.parse_launch(f"{_SOURCE.format(live=str(is_live).lower())} ! {os.environ.pop('REFUSION_EDGE_PIPELINE')}")
    except Exception as error:  # GLib's own exception type, which only exists after the import
        print(" ".join(str(getattr(error, "message", error)).split()), flush=True)
        return _BAD_PIPELINE
    if pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
        print(_reason(gst, pipeline, 0) or "the pipeline does not start", flush=True)
        pipeline.set_state(gst.State.NULL)
        return _BAD_PIPELINE
    # A pipeline that fails must not leave the feeder waiting: this ends the process with the reason.
    threading.Thread(target=_watch, args=(gst, pipeline), daemon=True).start()
    print("ready", flush=True)
    _feed(gst, pipeline, is_live=is_live, rate=int(sys.argv[2]))
    pipeline.get_by_name("refusion").emit("end-of-stream")
    if not _ENDED.wait(float(sys.argv[3])):
        print("the pipeline does not end", flush=True)
        # Not by setting its state, for which whatever is stuck in it would be waited for.
        os._exit(_FAILED)
    pipeline.set_state(gst.State.NULL)
    return 0


_ENDED = threading.Event()


def _feed(gst: Any, pipeline: Any, *, is_live: bool, rate: int) -> None:
    source, known, start_ns = pipeline.get_by_name("refusion"), "", None
    while len(header := sys.stdin.buffer.read(HEADER.size)) == HEADER.size:
        name, width, height, count, time_ns = HEADER.unpack(header)
        pixels = sys.stdin.buffer.read(count)
        if len(pixels) < count:
            return
        text = f"video/x-raw,format={name.rstrip(bytes(1)).decode()},width={width},height={height},framerate={rate}/1"
        if text != known:
            known = text
            source.set_property("caps", gst.Caps.from_string(text))
        buffer = gst.Buffer.new_wrapped(pixels)
        if start_ns is None:
            # The first frame of a camera is shown now, that of a file at the beginning.
            start_ns = pipeline.get_clock().get_time() - pipeline.get_base_time() if is_live else 0
        buffer.pts = start_ns + time_ns
        buffer.duration = gst.SECOND // rate
        if source.emit("push-buffer", buffer) != gst.FlowReturn.OK:
            return


def _watch(gst: Any, pipeline: Any) -> None:
    reason = _reason(gst, pipeline, gst.CLOCK_TIME_NONE)
    if reason:
        print(reason, flush=True)
        os._exit(_FAILED)
    _ENDED.set()


def _reason(gst: Any, pipeline: Any, within_ns: int) -> str:
    """Why the pipeline failed, in one line; empty if it ended or did not fail."""
    message = pipeline.get_bus().timed_pop_filtered(within_ns, gst.MessageType.ERROR | gst.MessageType.EOS)
    failed = message is not None and message.type == gst.MessageType.ERROR
    return " ".join(message.parse_error()[0].message.split()) if failed else ""


if __name__ == "__main__":
    sys.exit(main())
