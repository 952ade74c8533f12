"""Program for the system's Python: stops pipelines whose last element takes no more frames or is flushed, and seeks in one.

Prints what happened, one word a line.
"""

import gc
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


def flushed():
    pipeline = Gst.parse_launch(f"refusion name=f network=fast ! fakesink sync=false {SOURCES.format(3, CAPS)}")
    element = pipeline.get_by_name("f")
    pipeline.set_state(Gst.State.PAUSED)
    pipeline.get_state(20 * Gst.SECOND)
    element.get_static_pad("ir").send_event(Gst.Event.new_flush_start())
    pipeline.set_state(Gst.State.NULL)
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(20 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    print("ended" if message and message.type == Gst.MessageType.EOS else "fails")
    pipeline.set_state(Gst.State.NULL)


def seek_in_one():
    pipeline = Gst.parse_launch(
        f"refusion name=f network=fast ! fakesink sync=false appsrc name=camera format=time caps={CAPS} ! f.ir "
        f"videotestsrc num-buffers=30 ! {CAPS} ! f.vis"
    )
    camera = pipeline.get_by_name("camera")
    for index in range(30):
        buffer = Gst.Buffer.new_wrapped(bytes(64 * 48))
        buffer.pts = index * 40 * Gst.MSECOND
        camera.emit("push-buffer", buffer)
    camera.emit("end-of-stream")
    pipeline.set_state(Gst.State.PAUSED)
    pipeline.get_state(20 * Gst.SECOND)
    print("sought" if pipeline.seek_simple(Gst.Format.TIME, Gst.SeekFlags.FLUSH, 0) else "refused")
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(10 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    print("ended" if message and message.type == Gst.MessageType.EOS else "fails")
    pipeline.set_state(Gst.State.NULL)


def freed():
    ended = []
    for _ in range(3):
        pipeline = Gst.parse_launch(f"refusion name=f network=fast ! fakesink sync=false {SOURCES.format(3, CAPS)}")
        pipeline.get_by_name("f").weak_ref(ended.append, "freed")
        pipeline.set_state(Gst.State.PLAYING)
        pipeline.get_bus().timed_pop_filtered(20 * Gst.SECOND, Gst.MessageType.EOS | Gst.MessageType.ERROR)
        pipeline.set_state(Gst.State.NULL)
        del pipeline
        gc.collect()
    print(*ended, sep="\n")


CASES = {
    "stalled": stalled_consumer,
    "seek": seek,
    "seek in one": seek_in_one,
    "again": again,
    "flushed": flushed,
    "freed": freed,
}

if __name__ == "__main__":
    CASES[sys.argv[1]]()
