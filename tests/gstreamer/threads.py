"""Program for the system's Python: drives the pads of one element from threads of its own, without other elements.

Prints what happened, one word a line.
"""

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst

Gst.init(None)
CAPS = Gst.Caps.from_string("video/x-raw,format=GRAY8,width=64,height=48,framerate=25/1")
PERIOD_MS, WAIT_S = 40, 10
SIDES = "ir", "vis"


class Bench:
    """An element with a pad of ours on each of its three; what it pushes is answered by ``answer``."""

    made = []  # noqa: RUF012 # of the whole program

    def __init__(self):
        self.made.append(self)
        self.element = Gst.ElementFactory.make("refusion")
        self.element.set_property("network", "fast")
        self.times, self.events = [], []
        self.answer = lambda: Gst.FlowReturn.OK
        self.sink = Gst.Pad.new("sink", Gst.PadDirection.SINK)
        self.sink.set_chain_function_full(self._take)
        self.sink.set_event_function_full(self._note)
        self.sink.set_query_function_full(self._ask)
        self.accepts = True
        self.sink.set_active(True)
        self.element.get_static_pad("src").link(self.sink)
        self.pads = {}
        self.element.set_state(Gst.State.PLAYING)
        for side in SIDES:
            pad = self.pads[side] = Gst.Pad.new(f"camera-{side}", Gst.PadDirection.SRC)
            pad.set_active(True)
            pad.link(self.element.get_static_pad(side))
            pad.push_event(Gst.Event.new_stream_start(side))
            pad.push_event(Gst.Event.new_caps(CAPS))
            self.begin(side)

    def _take(self, _pad, _parent, buffer):
        self.times.append(buffer.pts // Gst.MSECOND)
        return self.answer()

    def _note(self, _pad, _parent, event):
        self.events.append(event.type)
        return True

    def _ask(self, pad, parent, query):
        if query.type == Gst.QueryType.ACCEPT_CAPS:
            query.set_accept_caps_result(self.accepts)
            return True
        return pad.query_default(parent, query)

    def begin(self, side):
        segment = Gst.Segment()
        segment.init(Gst.Format.TIME)
        self.pads[side].push_event(Gst.Event.new_segment(segment))

    def push(self, side, index, offset_ms=0):
        buffer = Gst.Buffer.new_wrapped(bytes(64 * 48))
        buffer.pts = (index * PERIOD_MS + offset_ms) * Gst.MSECOND
        return self.pads[side].push(buffer)

    def pushing(self, side, *indices):
        """Push in a thread; gives the thread, and a list that receives the answers."""
        answers = []
        thread = threading.Thread(target=lambda: answers.extend(self.push(side, index) for index in indices), daemon=True)
        thread.start()
        return thread, answers

    def flush(self, side, *, start):
        event = Gst.Event.new_flush_start() if start else Gst.Event.new_flush_stop(True)
        thread = threading.Thread(target=self.pads[side].push_event, args=(event,), daemon=True)
        thread.start()
        thread.join(WAIT_S)
        if thread.is_alive():
            print("hangs")
        if not start:
            self.begin(side)

    def error(self):
        """Whether the element posted one."""
        bus = Gst.Bus()
        self.element.set_bus(bus)
        return lambda: bus.pop_filtered(Gst.MessageType.ERROR) is not None


def refused():
    """The next element refuses a frame of one camera while the other camera delivers."""
    from refusion_edge.stream.run.coupling import Coupling

    bench, entered, plain = Bench(), threading.Event(), Coupling.push

    def push(coupling, side, *rest, **named):
        if side == "ir":
            entered.set()
            return plain(coupling, side, *rest, **named)
        try:
            return plain(coupling, side, *rest, **named)
        finally:
            entered.wait(WAIT_S)

    bench.push("ir", 0)
    Coupling.push = push
    bench.answer = lambda: Gst.FlowReturn.ERROR
    vis, answers = bench.pushing("vis", 0)
    while not bench.times:
        pass
    ir, others = bench.pushing("ir", 1)
    for thread in (vis, ir):
        thread.join(WAIT_S)
    print(*(each.value_nick for each in (*answers, *others)), sep="\n")


def refused_at_the_end():
    """What waits until the end is in a format that the next element does not take."""
    bench = Bench()
    error = bench.error()
    bench.accepts = False
    bench.push("vis", 0)
    bench.push("ir", 0, offset_ms=10)
    print(*bench.times or ["waits"])
    for side in SIDES:
        bench.pads[side].push_event(Gst.Event.new_eos())
    print("error" if error() else "silent", "ended" if Gst.EventType.EOS in bench.events else "open", sep="\n")


def flushed_one_after_the_other():
    """Both cameras are flushed while one waits for the other."""
    bench = Bench()
    bench.flush("ir", start=True)
    thread, answers = bench.pushing("vis", *range(100, 120))
    thread.join(1)
    print("waits" if thread.is_alive() else "runs")
    bench.flush("vis", start=True)
    thread.join(WAIT_S)
    print("hangs" if thread.is_alive() else answers[-1].value_nick)
    for side in SIDES:
        bench.flush(side, start=False)
    for index in range(3):
        for side in SIDES:
            bench.push(side, index)
    print(*bench.times, sep="\n")


def flushed_alone():
    """One camera is flushed while a frame of the other one is on its way to the next element."""
    bench, given, flushed = Bench(), threading.Event(), threading.Event()

    def answer():
        given.set()
        flushed.wait(WAIT_S)
        return Gst.FlowReturn.FLUSHING

    bench.answer = answer
    bench.push("ir", 0)
    thread, answers = bench.pushing("vis", 0)
    given.wait(WAIT_S)
    flushing = threading.Thread(target=bench.flush, args=("ir",), kwargs={"start": True}, daemon=True)
    flushing.start()
    while Gst.EventType.FLUSH_START not in bench.events:
        pass
    flushed.set()
    thread.join(WAIT_S)
    flushing.join(WAIT_S)
    print(answers[0].value_nick)
    bench.answer = lambda: Gst.FlowReturn.OK
    bench.flush("ir", start=False)
    for index in range(1, 3):
        for side in SIDES:
            print(bench.push(side, index).value_nick)
    # A next element that is flushed by somebody else is no matter of ours.
    bench.answer = lambda: Gst.FlowReturn.FLUSHING
    bench.push("ir", 3)
    print(bench.push("vis", 3).value_nick)


def flushed_after_the_end():
    """One camera has ended for good, and the other one is flushed: no pair can come."""
    bench = Bench()
    for side in SIDES:
        bench.push(side, 0)
    bench.pads["vis"].push_event(Gst.Event.new_eos())
    bench.flush("ir", start=True)
    bench.flush("ir", start=False)
    print(bench.push("ir", 0).value_nick, "ended" if Gst.EventType.EOS in bench.events else "open", sep="\n")


def failed_start():
    """A pad that cannot be activated fails the start; the engine is closed, and the next start works."""
    from refusion_edge.stream.run import coupling

    closed, load = [], coupling.load

    class Fuser:
        network = "passing"

        class backend:  # noqa: N801 # an attribute
            name, uint8_range, takes_uint8 = "passing", None, False

        def __exit__(self, *_):
            closed.append(1)

    coupling.load = lambda *_, **__: Fuser()
    element = Gst.ElementFactory.make("refusion")
    fails = True
    element.get_static_pad("vis").set_activate_function_full(lambda _pad, _parent: not fails)
    print(element.set_state(Gst.State.PAUSED).value_nick, len(closed), sep="\n")
    element.set_state(Gst.State.NULL)
    fails = False
    element.set_state(Gst.State.PAUSED)
    element.set_state(Gst.State.NULL)
    print(len(closed))
    coupling.load = load


CASES = {
    "refused": refused,
    "refused at the end": refused_at_the_end,
    "flushed one after the other": flushed_one_after_the_other,
    "flushed alone": flushed_alone,
    "flushed after the end": flushed_after_the_end,
    "failed start": failed_start,
}

if __name__ == "__main__":
    Gst.ElementFactory.make("refusion")  # loads the plugin, and with it our packages
    CASES[sys.argv[1]]()
    for made in Bench.made:
        made.element.set_state(Gst.State.NULL)
