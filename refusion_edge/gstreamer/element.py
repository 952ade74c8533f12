"""The element ``refusion``, as GStreamer calls it. Imported by GStreamer's Python loader, see ``__main__``.

Frames are fused in the thread that delivers the later one of a pair, and pushed from there. Fused frames have the running time
of the newer frame.
"""

from __future__ import annotations

import threading
from dataclasses import fields
from fractions import Fraction
from typing import Any, ClassVar, cast

import gi

for _name in ("Gst", "GstVideo"):
    gi.require_version(_name, "1.0")

from gi.repository import GLib, GObject, Gst, GstVideo

from refusion_edge.errors import RefusionError
from refusion_edge.gstreamer.buffers import make_buffer, read_buffer
from refusion_edge.gstreamer.pixels import COLOR_FORMATS, GRAY_FORMATS, SINK_FORMATS, Layout
from refusion_edge.rig.model import GAIN_METHODS
from refusion_edge.stream.frames import SIDES, FusedFrame, Side, other
from refusion_edge.stream.run.coupling import Coupling, Settings

_NETWORK = (
    "refusion, fast, or auto for the better one that keeps up with the cameras; empty for the bundle's, otherwise refusion"
)
_SIZES = "width=[8,16384],height=[8,16384],framerate=[0/1,2147483647/1]"
# Of the camera that is waited for, and of the network.
_LATENCY_FRAMES = 2
_USUAL_PERIOD_NS = Gst.SECOND // 30
_FULL_RANGE = 1  # of GstVideoColorRange, whose name of it is no name in Python


_DEFAULTS = {"skew": -1.0, **{field.name: field.default for field in fields(Settings) if field.name != "max_skew_ms"}}


def _caps(formats: tuple[str, ...]) -> Any:
    return Gst.Caps.from_string(f"video/x-raw,format={{{','.join(formats)}}},{_SIZES}")


def _template(name: str, direction: Any, formats: tuple[str, ...]) -> Any:
    return Gst.PadTemplate.new(name, direction, Gst.PadPresence.ALWAYS, _caps(formats))


def _property(kind: Any, nick: str, text: str, *rest: Any) -> tuple[Any, ...]:
    return kind, nick, text, *rest, GObject.ParamFlags.READWRITE


class _Input:
    """A sink pad.

    Attributes:
        pad: The pad.
        layout: Where pixels lie, from its last caps.
        period_ns: Frame period, from its last caps.
        segment: Its last one.
        is_flushing: Whether arriving buffers are discarded.
    """

    def __init__(self, pad: Any) -> None:
        self.pad = pad
        self.layout: Layout | None = None
        self.period_ns = _USUAL_PERIOD_NS
        self.segment: Any = None
        self.is_flushing = False


class _RefusedError(Exception):
    """The next element did not take a frame; raised in the thread that pushed it, which is the one to be told."""

    def __init__(self, flow: Any) -> None:
        super().__init__(flow)
        self.flow = flow


class Refusion(Gst.Element):
    """Fuses an infrared and a visible video."""

    __gtype_name__ = "Refusion"
    __gstmetadata__ = (
        "ReFusion image fusion",
        "Filter/Effect/Video/Compositor",
        "Fuses infrared and visible video",
        "refusion-edge",
    )
    __gsttemplates__ = (
        _template("ir", Gst.PadDirection.SINK, SINK_FORMATS),
        _template("vis", Gst.PadDirection.SINK, SINK_FORMATS),
        _template("src", Gst.PadDirection.SRC, COLOR_FORMATS),
    )
    __gproperties__: ClassVar = {
        "network": _property(str, "network", _NETWORK, ""),
        "bundle": _property(str, "bundle", "engine bundle (folder) or weights file; empty for the package's weights", ""),
        "backend": _property(str, "back end", "back end that runs the network", "auto"),
        "threads": _property(int, "threads", "threads of the back end; 0 for its default", 0, 256, 0),
        "rig": _property(str, "rig", "rig file that aligns the two cameras", ""),
        "gain": _property(str, "gain", f"gain control of 16-bit infrared: {', '.join(GAIN_METHODS)}; empty for the rig's", ""),
        "skew": _property(
            float,
            "skew",
            "largest time difference within a pair, in ms; a negative value stands for 0.6 frame periods",
            -1.0,
            1e6,
            -1.0,
        ),
        "resize": _property(bool, "resize", "resize infrared to the visible size if there is no rig", False),
    }

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, Any] = {**_DEFAULTS}
        self._coupling: Coupling | None = None
        self._inputs: dict[Side, _Input] = {}
        for side in SIDES:
            pad = Gst.Pad.new_from_template(self.get_pad_template(side), side)
            # The parent is this element; functions that held it would keep it alive for ever.
            pad.set_chain_function_full(lambda _pad, parent, buffer, side=side: parent._chain(side, buffer))
            pad.set_event_function_full(lambda pad, parent, event, side=side: parent._handle(side, pad, parent, event))
            self.add_pad(pad)
            self._inputs[side] = _Input(pad)
        self._source = Gst.Pad.new_from_template(self.get_pad_template("src"), "src")
        self._source.set_event_function_full(lambda pad, parent, event: parent._handle_upstream(pad, parent, event))
        self._source.set_query_function_full(lambda pad, parent, query: parent._query(pad, parent, query))
        self.add_pad(self._source)
        self._begin()

    def do_get_property(self, spec: Any) -> Any:
        """Read a property."""
        return self._values[spec.name]

    def do_set_property(self, spec: Any, value: Any) -> None:
        """Set a property; it takes effect at the next start."""
        self._values[spec.name] = value or "" if isinstance(self._values[spec.name], str) else value

    def do_change_state(self, transition: Any) -> Any:
        """Open the engine before the first frame and close it after the last."""
        if transition == Gst.StateChange.READY_TO_PAUSED:
            values = {key: value for key, value in self._values.items() if key != "skew"}
            try:
                self._coupling = Coupling(Settings(**values, max_skew_ms=self._values["skew"]), self._say)
            except RefusionError as error:
                self._fail(Gst.ResourceError.quark(), Gst.ResourceError.SETTINGS, str(error))
                return Gst.StateChangeReturn.FAILURE
            self._begin()
            self._say(f"network: {self._coupling.network}")
        elif transition == Gst.StateChange.PAUSED_TO_READY and self._coupling is not None:
            self._stopping = True
            self._coupling.wake()
        result = Gst.Element.do_change_state(self, transition)
        failed = transition == Gst.StateChange.READY_TO_PAUSED and result == Gst.StateChangeReturn.FAILURE
        if failed:
            for pad in self.pads:  # some may have been started
                pad.set_active(False)
        if (failed or transition == Gst.StateChange.PAUSED_TO_READY) and self._coupling is not None:
            # The pads have been stopped, and with them the threads.
            coupling, self._coupling = self._coupling, None
            coupling.__exit__()
        return result

    def _begin(self) -> None:
        self._stopping = self._is_over = False
        self._made: tuple[str, tuple[int, int]] | None = None
        self._has_started = self._has_segment = False
        # Pads whose old frames are thrown away after a seek, and whether the next elements throw theirs away.
        self._seeking: set[Side] = set()
        self._flushes = False
        self._eos_lock = threading.Lock()
        for each in self._inputs.values():
            each.is_flushing = False  # a stop may come between the start and the stop of a flush

    def _chain(self, side: Side, buffer: Any) -> Any:
        """Accept a buffer of a pad."""
        try:
            return self._accept(side, buffer)
        except _RefusedError as refused:
            return refused.flow
        except Exception as error:  # what leaves this function, GStreamer takes for success
            return self._fail_with(error)

    def _accept(self, side: Side, buffer: Any) -> Any:
        mine, coupling = self._inputs[side], self._coupling
        if mine.is_flushing or coupling is None:
            return Gst.FlowReturn.FLUSHING
        if self._is_over:
            return Gst.FlowReturn.EOS
        if mine.layout is None or mine.segment is None:
            return Gst.FlowReturn.NOT_NEGOTIATED
        if buffer.pts == Gst.CLOCK_TIME_NONE:
            text = f"a buffer of {side} has no time stamp; set do-timestamp=true or a framerate on its source"
            return self._fail(Gst.StreamError.quark(), Gst.StreamError.FORMAT, text)
        time_ns = mine.segment.to_running_time(Gst.Format.TIME, buffer.pts)
        if time_ns == Gst.CLOCK_TIME_NONE:  # outside of its segment
            return Gst.FlowReturn.OK
        image = read_buffer(buffer, mine.layout)
        if not coupling.push(side, image, time_ns, self._emit, is_stale=lambda: mine.is_flushing or side in self._seeking):
            self._end()
        if not self._is_over and not self._is_live():
            coupling.wait_for_other(side, lambda: self._stopping or mine.is_flushing or self._is_over)
        return Gst.FlowReturn.EOS if self._is_over else Gst.FlowReturn.FLUSHING if mine.is_flushing else Gst.FlowReturn.OK

    def _emit(self, frame: FusedFrame) -> None:
        """Push a fused frame; called by one thread at a time.

        Raises:
            _RefusedError: The next element did not take it.
        """
        size_wh = frame.image.shape[1], frame.image.shape[0]
        if self._made is None or self._made[1] != size_wh or self._source.check_reconfigure():
            chosen = self._negotiate(frame.image.ndim == 3, size_wh)
            if chosen is None:
                raise _RefusedError(Gst.FlowReturn.NOT_NEGOTIATED)
            self._made = chosen, size_wh
        buffer = make_buffer(frame.image, self._made[0])
        buffer.pts, buffer.duration = frame.time_ns, self._inputs["vis"].period_ns
        flow = self._source.push(buffer)
        # A flush of the other camera also empties the next elements. This camera goes on.
        if flow != Gst.FlowReturn.OK and not (flow == Gst.FlowReturn.FLUSHING and self._flushes):
            raise _RefusedError(flow)

    def _negotiate(self, is_color: bool, size_wh: tuple[int, int]) -> str | None:
        """Choose the format that is cheapest to produce of those that the next element accepts, and announce it."""
        rates = (each.pad.get_current_caps().get_structure(0).get_fraction("framerate") for each in self._inputs.values())
        rate = max((Fraction(number, over) for known, number, over in rates if known and over), default=Fraction(0))
        for name in COLOR_FORMATS if is_color else GRAY_FORMATS:
            text = f"video/x-raw,format={name},width={size_wh[0]},height={size_wh[1]}"
            text += f",framerate={rate.numerator}/{rate.denominator}"
            if name in {"NV12", "I420"}:
                text += ",colorimetry=bt601"
            caps = Gst.Caps.from_string(text)
            if self._source.peer_query_accept_caps(caps):
                break
        else:
            return None
        self._start()
        self._source.push_event(Gst.Event.new_caps(caps))
        if not self._has_segment:
            self._has_segment = True
            segment = Gst.Segment()
            segment.init(Gst.Format.TIME)
            self._source.push_event(Gst.Event.new_segment(segment))
        return name

    def _start(self) -> None:
        if not self._has_started:
            self._has_started = True
            self._source.push_event(Gst.Event.new_stream_start(f"refusion/{GLib.uuid_string_random()}"))

    def _end(self) -> None:
        """Send the end of the stream, once."""
        with self._eos_lock:
            if self._is_over:
                return
            self._is_over = True
        self._start()
        self._source.push_event(Gst.Event.new_eos())
        if self._coupling is not None:
            self._coupling.wake()

    def _handle(self, side: Side, pad: Any, parent: Any, event: Any) -> bool:
        """Handle an event of a sink pad; the fused video has its own start, caps and segment."""
        mine, kind = self._inputs[side], event.type
        if kind == Gst.EventType.CAPS:
            mine.layout, mine.period_ns = _read_caps(event.parse_caps())
            return mine.layout is not None
        if kind == Gst.EventType.SEGMENT:
            mine.segment = event.parse_segment().copy()
            return bool(mine.segment.format == Gst.Format.TIME)
        if kind in {Gst.EventType.STREAM_START, Gst.EventType.TAG, Gst.EventType.GAP, Gst.EventType.STREAM_GROUP_DONE}:
            return True
        if kind == Gst.EventType.EOS:
            return self._note_end(side)
        if kind in {Gst.EventType.FLUSH_START, Gst.EventType.FLUSH_STOP}:
            return self._flush(side, event)
        return bool(pad.event_default(parent, event))

    def _note_end(self, side: Side) -> bool:
        try:
            if self._coupling is None or not self._coupling.end(side, self._emit):
                self._end()
        except _RefusedError as refused:
            # An event has no answer that would stop the camera and tell the user, as that of a frame does.
            if refused.flow not in (Gst.FlowReturn.FLUSHING, Gst.FlowReturn.EOS):
                text = f"the next element did not take a frame ({refused.flow.value_nick})"
                self._fail(Gst.StreamError.quark(), Gst.StreamError.FAILED, text)
            self._end()
        except Exception as error:
            self._fail_with(error)
        return True

    def _flush(self, side: Side, event: Any) -> bool:
        """Discard waiting frames; the first start and the last stop of a flush are passed downstream."""
        mine, theirs = self._inputs[side], self._inputs[other(side)]
        mine.is_flushing = event.type == Gst.EventType.FLUSH_START
        if mine.is_flushing:
            is_first, self._flushes = not self._flushes, True
            # Passed on first: the thread that has the coupling may be waiting for the next element.
            forwarded = not is_first or self._source.push_event(event)
            if self._coupling is not None and (is_first or theirs.is_flushing):
                self._coupling.restart({side, *self._seeking})
            elif self._coupling is not None:
                # Within a seek, the other camera may have delivered new frames already.
                self._coupling.wake()
            return bool(forwarded)
        mine.segment = None
        self._seeking.discard(side)
        if self._seeking or any(each.is_flushing for each in self._inputs.values()):
            return True
        self._flushes = self._is_over = self._has_segment = False
        self._made = None
        return bool(self._source.push_event(event))

    def _handle_upstream(self, pad: Any, parent: Any, event: Any) -> bool:
        """Pass an event of the next element on to both cameras; their frames from before a seek are discarded."""
        if event.type == Gst.EventType.SEEK:
            # If only one camera could seek, the two would diverge in time, and the flush would never end.
            if not all(_can_seek(each.pad) for each in self._inputs.values()):
                return False
            if event.parse_seek()[2] & Gst.SeekFlags.FLUSH:
                self._seeking = {*SIDES}
        handled = bool(pad.event_default(parent, event))
        if not handled:
            self._seeking = set()
        return handled

    def _query(self, pad: Any, parent: Any, query: Any) -> bool:
        """Answer a query of the next element; pairing and fusing add to the latency of the cameras."""
        if not pad.query_default(parent, query):
            return False
        if query.type == Gst.QueryType.LATENCY:
            live, least, most = query.parse_latency()
            added = _LATENCY_FRAMES * max(each.period_ns for each in self._inputs.values())
            query.set_latency(live, least + added, most if most == Gst.CLOCK_TIME_NONE else most + added)
        return True

    def _is_live(self) -> bool:
        """Whether a source is live, and must not be kept waiting."""
        for each in self._inputs.values():
            query = Gst.Query.new_latency()
            if each.pad.peer_query(query) and query.parse_latency()[0]:
                return True
        return False

    def _say(self, text: str) -> None:
        Gst.info(f"{self.get_name()}: {text}")

    def _fail_with(self, error: Exception) -> Any:
        text = str(error) if isinstance(error, RefusionError) else f"this is a bug, please report it: {error!r}"
        return self._fail(Gst.StreamError.quark(), Gst.StreamError.FAILED, text)

    def _fail(self, domain: int, code: Any, text: str) -> Any:
        error = GLib.Error.new_literal(domain, text, int(code))
        self.post_message(Gst.Message.new_error(self, error, ""))
        return Gst.FlowReturn.ERROR


def _can_seek(pad: Any) -> bool:
    """Whether the source of a pad can seek, as far as it says."""
    query = Gst.Query.new_seeking(Gst.Format.TIME)
    return not pad.peer_query(query) or bool(query.parse_seeking()[1])


def _read_caps(caps: Any) -> tuple[Layout | None, int]:
    info = GstVideo.VideoInfo.new_from_caps(caps)
    if info is None:
        return None, _USUAL_PERIOD_NS
    count, name = info.finfo.n_planes, cast(str, info.finfo.name)
    matrices = {GstVideo.VideoColorMatrix.BT709: "bt709", GstVideo.VideoColorMatrix.BT2020: "bt2020"}
    layout = Layout(
        name, (info.width, info.height), tuple(info.offset)[:count], tuple(info.stride)[:count],
        matrices.get(info.colorimetry.matrix, "bt601"), int(info.colorimetry.range) == _FULL_RANGE,
    )  # fmt: skip
    return layout, round(Gst.SECOND * info.fps_d / info.fps_n) if info.fps_n else _USUAL_PERIOD_NS


GObject.type_register(Refusion)
__gstelementfactory__ = ("refusion", Gst.Rank.NONE, Refusion)
