"""Program for the system's Python: stops pipelines whose last element takes no more frames, and seeks in one.

Prints what happened, one word a line.
"""

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst

Gst.init(None)
SOURCES = "videotestsrc num-buffers={0} ! {1} ! f.ir videotestsrc num-buffers={0} ! {1} ! f.vis"
CAPS = "video/x-raw,format=GRAY8,width=64,height=48,framerate=25/1"


def within(seconds, work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def stalled_consumer():
    sources = SOURCES.format(1000, CAPS)
    pipeline = Gst.parse_launch(f"refusion name=f network=fast ! appsink name=out sync=false max-buffers=2 {sources}")
    pipeline.set_state(Gst.State.PLAYING)
    assert pipeline.get_by_name("out").emit("pull-sample") is not None
    stopped = within(20, lambda: pipeline.set_state(Gst.State.NULL))
    print("stopped" if stopped else "hangs")


def seek():
    sources = SOURCES.format(1000, CAPS)
    pipeline = Gst.parse_launch(f"refusion name=f network=fast ! fakesink name=out sync=false signal-handoffs=true {sources}")
    times = []
    pipeline.get_by_name("out").connect("handoff", lambda _sink, buffer, _pad: times.append(buffer.pts))
    pipeline.set_state(Gst.State.PAUSED)
    pipeline.get_state(20 * Gst.SECOND)
    part = Gst.SeekType.SET, 400 * Gst.MSECOND, Gst.SeekType.SET, 800 * Gst.MSECOND
    done = pipeline.seek(1.0, Gst.Format.TIME, Gst.SeekFlags.FLUSH, *part)
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(20 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    print("ended" if done and message and message.type == Gst.MessageType.EOS else "fails")
    pipeline.set_state(Gst.State.NULL)
    print(len(times))


def again():
    pipeline = Gst.parse_launch(f"refusion name=f network=fast ! fakesink sync=false {SOURCES.format(3, CAPS)}")
    for _ in range(2):
        pipeline.set_state(Gst.State.PLAYING)
        message = pipeline.get_bus().timed_pop_filtered(20 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
        print("ended" if message and message.type == Gst.MessageType.EOS else "fails")
        pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    {"stalled": stalled_consumer, "seek": seek, "again": again}[sys.argv[1]]()
