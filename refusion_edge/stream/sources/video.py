"""Video files and network streams as sources, through PyAV, the binding of FFmpeg's libraries."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import av
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from typing_extensions import Self

from refusion_edge.errors import InputError, RefusionError, ShapeError, SourceLostError
from refusion_edge.stream.frames import SECOND, Side
from refusion_edge.stream.sources.clock import CLOCK_STREAM, SourceClock
from refusion_edge.stream.sources.damage import is_cut_off
from refusion_edge.stream.sources.decoding import Decoded, Decoder
from refusion_edge.stream.sources.network import OPEN_S, READ_S, check_port, open_error
from refusion_edge.stream.sources.pixels import raw_bytes, read_pixel_format, stated_white, to_image, unpack
from refusion_edge.stream.sources.source import (
    CLOCK_CONTAINER,
    CLOCK_COUNT,
    CorruptFrameError,
    Grab,
)
from refusion_edge.stream.uri import Uri, number_option, read_options

# Two frames are enough to find the rate. What was read to find it is kept: the only key frame for long may be among it.
_LIVE_OPTIONS = {"rtsp_transport": "tcp", "max_delay": "200000", "fpsprobesize": "2"}
_DEFAULT_RATE_HZ = 30.0
# Frames of a file with one time stamp: after this many, the rate takes the place of the stamps until they advance again.
_MAX_STANDING = 3
# FFmpeg's AVFMT_NOTIMESTAMPS; and its reader of Motion JPEG over HTTP, which counts at 25 per second whatever arrives.
_WITHOUT_STAMPS, _COUNTED = 0x80, ("mpjpeg",)
# Containers whose clock starts anywhere, as that of a broadcast; in all others, zero is the beginning of the recording.
_CLOCK_OF_ITS_OWN = (".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob")
# Codecs that code each frame by itself. The others repeat the pixels of a still scene, whatever the sensor's noise was.
_INTRA_CODED = frozenset(
    {"ffv1", "mjpeg", "png", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "prores", "dnxhd", "tiff", "bmp"}
)
_DEINTERLACED = "interlaced frames were deinterlaced"

# A frame, its number, and its time.
_Taken = tuple[VideoFrame, int, int]


class VideoSource:
    """A video file or a network stream. Implements ``Source``.

    It takes the options ``format`` (``auto``, ``y16``, ``split16``) and, for files, ``rate``: the frames per second where the
    file holds no times.

    Args:
        uri: Its name.
        side: Which camera it is.
        live: Whether frames arrive on their own, as from a camera.
    """

    def __init__(self, uri: Uri, side: Side, *, live: bool) -> None:
        self.uri, self.side, self.live = uri, side, live
        read_options(uri, ("format", "rate"))
        self._format = read_pixel_format(uri)
        self._asked_rate_hz = number_option(uri, "rate", 0, low=0, high=1000)
        self.absolute = live or uri.path.suffix.lower() in _CLOCK_OF_ITS_OWN
        self.remarks: list[str] = []
        self.timing = SourceClock(CLOCK_STREAM) if live else None
        self._reading: _Reading | None = None

    def __enter__(self) -> Self:
        if self.timing is not None and self._reading is not None:
            self.timing.restart()
        self._reading = _Reading(self.uri, self._asked_rate_hz, self.timing)
        self._converter = VideoReformatter()
        self.remarks += [remark for remark in self._reading.remarks if remark not in self.remarks]
        return self

    def __exit__(self, *exc: object) -> None:
        if self._reading is not None:
            self._reading.close()

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        if self.timing is not None:
            return self.timing.state.clock
        return CLOCK_CONTAINER if self._reading is None or self._reading.stamped else CLOCK_COUNT

    @property
    def rate_hz(self) -> float | None:
        """Frame rate of the stream, or None if it is unknown or implausible."""
        rate = self._asked_rate_hz or (0.0 if self._reading is None else self._reading.rate_hz)
        return rate if 0 < rate <= 1000 else None

    @property
    def keeps_noise(self) -> bool:
        """See ``Source.keeps_noise``."""
        return self._reading is not None and self._reading.codec in _INTRA_CODED

    def read(self) -> Grab | None:
        """See ``Source.read``."""
        assert self._reading is not None
        taken = self._reading.next()
        if taken is None:
            return None
        frame, index, time_ns = taken
        if self._reading.deinterlaces and _DEINTERLACED not in self.remarks:
            self.remarks.append(_DEINTERLACED)
        white = None
        try:
            if self._format == "auto":
                image, white = to_image(frame, self.side, self._converter), stated_white(frame)
            else:
                image = unpack(raw_bytes(frame), self._format)
        except ShapeError as error:
            if index == 0:
                raise
            raise CorruptFrameError(error.problem, error.remedy, expected=error.expected, got=error.got) from error
        return Grab(image, index, time_ns, white)


class _Reading:
    """One opening of a file or a stream: its frames from the first packet to the end."""

    def __init__(self, uri: Uri, rate_hz: float, timing: SourceClock | None) -> None:
        live = timing is not None
        self._uri, self._live, self._timing = uri, live, timing
        self._container = _open_file(uri) if uri.scheme == "file" else _open_address(uri, live=live)
        try:
            stream, self.remarks = _choose_stream(self._container, uri)
            try:
                self._decoder = Decoder(stream, low_delay=live)
            except InputError as error:
                raise InputError(f"cannot read {uri}: {error.problem}", error.remedy) from error
        except BaseException:
            self.close()
            raise
        self._stream = stream
        self.codec = stream.codec_context.codec.name
        self.rate_hz = float(stream.average_rate or stream.guessed_rate or 0)
        self.stamped = self._container.format.name not in _COUNTED and not self._container.format.flags & _WITHOUT_STAMPS
        if timing is not None and not self.stamped:
            timing.use_arrival()
        self._period_ns = round(SECOND / (rate_hz or self.rate_hz or _DEFAULT_RATE_HZ))
        self._packets = iter(self._container.demux(stream))
        self._ready: deque[_Taken | CorruptFrameError] = deque()
        self._ended = False
        self._failure: RefusionError | None = None
        self._seen = self._index = self._shown = 0
        self._stamp_ns = self._time_ns = -self._period_ns
        self._standing = 0

    def close(self) -> None:
        """Close the file or the connection; more than once does no harm."""
        self._container.close()

    @property
    def deinterlaces(self) -> bool:
        """Whether there were interlaced frames."""
        return self._decoder.deinterlaces

    def next(self) -> _Taken | None:
        """Return the next frame, or None at the end; see ``Source.read``."""
        while not self._ready and not self._ended:
            self._advance()
        if not self._ready:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            return None
        taken = self._ready.popleft()
        if isinstance(taken, CorruptFrameError):
            raise taken
        return taken

    def _advance(self) -> None:
        """Read one packet, and put what it brings out into ``_ready``."""
        try:
            packet = next(self._packets)
        except StopIteration:
            packet = None
        except (av.FFmpegError, OSError) as error:
            self._end(error)
            return
        arrived_ns = time.monotonic_ns()
        if packet is None or (not packet.size and packet.dts is None):
            self._end(None)
        elif packet.size:
            self._seen += 1
            self._take(self._decoder.decode(packet), arrived_ns)

    def _end(self, error: Exception | None) -> None:
        self._take(self._decoder.flush(), time.monotonic_ns())
        self._ended, self._failure = True, self._end_of(error)

    def _take(self, decoded: Iterator[Decoded], arrived_ns: int) -> None:
        lost = self._decoder.lost
        for frame, stamp in decoded:
            self._ready.append((frame, self._index, self._place(stamp, arrived_ns)))
            self._index += 1
            self._shown += 1
        for _ in range(self._decoder.lost - lost):
            self._ready.append(CorruptFrameError(f"frame {self._index} of {self._uri} is damaged, or depends on one that is"))
            self._index += 1

    def _place(self, stamp: int | None, arrived_ns: int) -> int:
        """Time of a frame in ns: its time stamp, on the container's clock or mapped to the host's."""
        base = self._stream.time_base
        read_ns = None if stamp is None or base is None or not self.stamped else round(stamp * base * SECOND)
        if self._timing is not None:
            return self._timing.place(read_ns, arrived_ns)
        if not self.stamped:
            return self._index * self._period_ns
        stamp_ns = self._time_ns + self._period_ns if read_ns is None else read_ns
        # A repeated stamp is left to pairing, which drops that frame.
        self._standing = self._standing + 1 if stamp_ns == self._stamp_ns else 0
        self._stamp_ns = stamp_ns
        self._time_ns = self._time_ns + self._period_ns if self._standing > _MAX_STANDING else stamp_ns
        return self._time_ns

    def _end_of(self, error: Exception | None) -> RefusionError | None:
        """What is wrong with the end of the stream, or None where it is the regular one."""
        if not self._live and error is not None and self._uri.scheme != "file":
            return SourceLostError(f"the connection to {self._uri} broke off after {self._seen} frames", "check the network")
        if not self._live:
            return self._end_of_file(error)
        if error is None and self._container.duration:
            return None  # a file after all
        return SourceLostError(f"{self._uri} stopped sending frames", "check the camera and its connection")

    def _end_of_file(self, error: Exception | None) -> RefusionError | None:
        uri, declared = self._uri, self._declared()
        if error is not None or (is_cut_off(uri.path) if uri.scheme == "file" else self._seen < declared):
            of_all = f" of {declared}" if declared > self._seen else ""
            return InputError(
                f"{uri} breaks off after {self._seen}{of_all} frames",
                "copy or record it again; what there is was used",
                expected=declared if of_all else None,
                got=self._seen,
            )
        if not self._seen:
            return InputError(f"{uri} holds no frames", "record it again")
        if not self._shown:
            return InputError(f"cannot decode any frame of {uri}", "convert it to H.264 or FFV1, or copy it again")
        return None

    def _declared(self) -> int:
        """Number of frames by the header of the file; 0 if it is unknown."""
        if self._stream.frames:
            return int(self._stream.frames)
        duration_s = (self._container.duration or 0) / av.time_base
        return round(duration_s * self.rate_hz)


def _open_file(uri: Uri) -> InputContainer:
    if not uri.path.is_file():
        raise InputError(f"there is no video at {uri}", "check the path")
    try:
        if not uri.path.stat().st_size:
            raise InputError(f"the video {uri} is empty (0 bytes)", "write or copy it again")
        return av.open(f"file:{uri.target}", "r", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f"cannot open the video {uri}: {(error.strerror or '').lower()}", "check its permissions") from error
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"cannot open the video {uri}: it is damaged or not a video", "copy it again, or convert it to H.264 or FFV1"
        ) from error


def _open_address(uri: Uri, *, live: bool) -> InputContainer:
    check_port(uri)
    try:
        return av.open(
            uri.address, "r", options=_LIVE_OPTIONS if live else {}, timeout=(OPEN_S, READ_S), metadata_errors="replace"
        )
    except (av.FFmpegError, OSError) as error:
        raise open_error(uri, error) from None  # FFmpeg's own error holds the whole address


def _choose_stream(container: InputContainer, uri: Uri) -> tuple[VideoStream, list[str]]:
    """Choose the video stream, by default the first one that is marked as such, and say so if there are several."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise InputError(f"{uri} holds no video", "name a file with a video stream")
    chosen = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    if len(streams) == 1:
        return chosen, []
    return chosen, [f"{len(streams)} video streams; number {streams.index(chosen) + 1} of them is read"]
