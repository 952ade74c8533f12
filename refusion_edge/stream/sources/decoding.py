"""Decoding one video stream: good frames in order, damage found and left out, interlaced frames deinterlaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import av
from av.codec.context import Flags
from av.filter import Graph

from refusion_edge.errors import InputError
from refusion_edge.images.io import MOST_PIXELS
from refusion_edge.stream.sources.damage import PacketCheck

if TYPE_CHECKING:
    from collections.abc import Iterable

    from av import Packet, VideoFrame, VideoStream

# Without `explode`, the decoders of JPEG and others conceal damage without a flag.
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode", "max_pixels": str(MOST_PIXELS)}
# FFmpeg's own decoder of TIFF refuses what its encoder writes.
_MILD = frozenset({"tiff"})
# After an error, these decoders keep the rest of a block in memory and add it to later frames.
_RENEWED = frozenset({"h264", "hevc"})
# Streams that are refreshed piece by piece have no key frames; after this many frames they count as whole again.
_MAX_SKIPPED = 300
# No codec puts off a frame by more.
_MAX_PENDING = 64
# The frames that directly follow a key frame may depend on those before it; decoders drop them without a word.
_LEADING = 16

Decoded = tuple["VideoFrame", "int | None"]


class Decoder:
    """Decodes the packets of one stream.

    A frame that is damaged, or that may depend on one, is left out: in order of decoding, those from the damage to the next key
    frame. Packets are not decoded in parallel, only their slices, so that an error belongs to the packet that caused it.

    Args:
        stream: A stream of an open container.
        low_delay: Whether frames are wanted as soon as possible, as those of a camera.

    Attributes:
        lost: Number of damaged frames so far.
        deinterlaces: Whether there were interlaced frames.

    Raises:
        InputError: There is no decoder for its codec.
    """

    def __init__(self, stream: VideoStream, *, low_delay: bool) -> None:
        if stream.codec_context is None:
            raise InputError("there is no decoder for its codec", "convert it to H.264 or FFV1")
        self.lost = 0
        self._context, self._low_delay = stream.codec_context, low_delay
        self._set_up()
        self._check = PacketCheck(self._context.codec.name)
        # Time stamps of the frames that are not out yet, by the number of their packet.
        self._pending: dict[int, int | None] = {}
        self._number = 0
        # Packets left out since the last damage, or None.
        self._skipped: int | None = None
        # Number of the packet at which decoding began again.
        self._resumed: int | None = None
        self._deinterlacer: _Deinterlacer | None = None

    @property
    def deinterlaces(self) -> bool:
        """Whether there were interlaced frames."""
        return self._deinterlacer is not None

    def decode(self, packet: Packet[VideoStream]) -> Iterator[Decoded]:
        """Decode a packet.

        Args:
            packet: The next one of the stream. Its time stamps are replaced.

        Yields:
            Each frame that is out now, with the time stamp that its packet had, in units of the stream.
        """
        number = self._number
        self._number += 1
        if self._skipped is not None and not packet.is_keyframe and self._skipped < _MAX_SKIPPED:
            self._skipped += 1
            self.lost += 1
            return
        if self._skipped is not None:
            self._skipped, self._resumed = None, number
        self._pending[number] = packet.pts
        self._give_up(number - _MAX_PENDING)
        if packet.is_corrupt or self._check.finds_damage(bytes(packet)):
            yield from self._recover(number, ())
            return
        # Decoders hand the time stamp on to the frame, which shows the packet that it is from.
        packet.pts, packet.dts = number, None
        try:
            frames = self._context.decode(packet)
        except (av.FFmpegError, ValueError):
            yield from self._recover(number, ())
            return
        yield from self._take(frames)

    def flush(self) -> Iterator[Decoded]:
        """Bring out the last frames at the end of the stream."""
        yield from self._take(self._drain())
        for number in tuple(self._pending):
            self._give_up(number)
        if self._deinterlacer is not None:
            yield from self._deinterlacer.flush()

    def _take(self, frames: list[VideoFrame]) -> Iterator[Decoded]:
        for position, frame in enumerate(frames):
            if frame.is_corrupt:
                yield from self._recover(self._origin(frame), frames[position + 1 :])
                return
            yield from self._finish(frame)

    def _recover(self, damaged: int, frames: Iterable[VideoFrame]) -> Iterator[Decoded]:
        """Bring out the frames decoded before the damage, and skip all others up to the next key frame."""
        for frame in (*frames, *self._drain()):
            if not frame.is_corrupt and self._origin(frame) < damaged:
                yield from self._finish(frame)
        self.lost += len(self._pending)
        self._pending.clear()
        self._skipped = 0
        if self._context.codec.name in _RENEWED:
            extradata = self._context.extradata
            self._context = av.CodecContext.create(self._context.codec, "r")  # type: ignore[assignment]
            self._context.extradata = extradata
            self._set_up()
        else:
            self._context.flush_buffers()

    def _give_up(self, number: int) -> None:
        """Wait no longer for the frame of a packet: not every packet has one, but after damage it counts as lost."""
        if number in self._pending:
            del self._pending[number]
            self.lost += self._resumed is not None and self._resumed <= number < self._resumed + _LEADING

    def _origin(self, frame: VideoFrame) -> int:
        """Number of the packet that a frame is from."""
        return self._number - 1 if frame.pts is None else frame.pts

    def _drain(self) -> list[VideoFrame]:
        try:
            return self._context.decode(None)
        except (av.FFmpegError, ValueError):
            return []

    def _set_up(self) -> None:
        mild = self._context.codec.name in _MILD
        self._context.options = {**_STRICT, "err_detect": "crccheck+bitstream+buffer"} if mild else _STRICT
        self._context.thread_type = "SLICE"
        if self._low_delay:
            self._context.flags |= Flags.low_delay

    def _finish(self, frame: VideoFrame) -> Iterator[Decoded]:
        stamp = self._pending.pop(self._origin(frame), None)
        if frame.interlaced_frame and self._deinterlacer is None:
            self._deinterlacer = _Deinterlacer()
        if self._deinterlacer is None:
            yield frame, stamp
        else:
            yield from self._deinterlacer.add(frame, stamp)


class _Deinterlacer:
    """Turns interlaced frames into whole ones by the filter ``bwdif``, which needs the next frame for each.

    Frames that are not interlaced pass unchanged.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._kind: tuple[int, int, str] | None = None
        self._stamps: deque[int | None] = deque()

    def add(self, frame: VideoFrame, stamp: int | None) -> Iterator[Decoded]:
        kind = frame.width, frame.height, frame.format.name
        if kind != self._kind:
            yield from self.flush()
            self._graph, self._kind = _make_graph(frame), kind
        self._stamps.append(stamp)
        yield from self._pass(frame)

    def flush(self) -> Iterator[Decoded]:
        """Bring out the last frame; a frame of another size may follow."""
        if self._graph is not None:
            yield from self._pass(None)
        self._graph = self._kind = None
        self._stamps.clear()

    def _pass(self, frame: VideoFrame | None) -> Iterator[Decoded]:
        assert self._graph is not None
        self._graph.vpush(frame)
        while True:
            try:
                whole = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield whole, self._stamps.popleft()


def _make_graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")).configure()
    return graph
