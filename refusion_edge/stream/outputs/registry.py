"""The output for a URI."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from refusion_edge.stream.outputs.clips import Clips
from refusion_edge.stream.outputs.display import DisplaySink
from refusion_edge.stream.outputs.sinks import NullSink, SharedMemorySink, Sink
from refusion_edge.stream.outputs.video import open_file_sink
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import Uri, parse_output


def open_sink(
    uri: Uri | str,
    *,
    rate_hz: float | None = None,
    live: bool = True,
    statistics: Statistics | None = None,
    gain: ThermalGain | None = None,
    stop: threading.Event | None = None,
    token: str | None = None,
    allow_origins: Sequence[str] = (),
    tls: tuple[str, str] | None = None,
    clips: Clips | None = None,
    overwrite: bool = True,
    announce: Callable[[str], object] = lambda _text: None,
) -> Sink:
    """Create the output that a URI names; entering it as a context manager opens it, and leaving it completes its files.

    Args:
        uri: The output, see ``refusion_edge.stream.uri.parse_output``.
        rate_hz: Nominal frames per second of a video; 30 if unknown. Frames keep their own times.
        live: Whether the frames come from cameras, which a pipeline shows as they arrive.
        statistics: What the browser view reports about the run.
        gain: The gain control whose polarity the browser view can switch.
        stop: Set by a window that is closed.
        token: Token required from viewers of the browser view.
        allow_origins: Addresses under which reverse proxies show it.
        tls: Files of a certificate and its key with which it is served.
        clips: Records videos for viewers of the browser view.
        overwrite: Whether to replace files of earlier runs.
        announce: Called with messages for users, such as an address.

    Raises:
        UsageError: The URI has unknown options, or cannot be written.
        OutputError: A file exists that must not be replaced.
        MissingDependencyError: The output needs a package that is not installed.
    """
    uri = parse_output(uri) if isinstance(uri, str) else uri
    if uri.scheme == "null":
        return NullSink(uri)
    if uri.scheme == "display":
        return DisplaySink(uri, stop or threading.Event())
    if uri.scheme == "shm":
        return SharedMemorySink(uri)
    if uri.scheme in {"rtsp", "gst"}:
        return _open_pipeline(uri, rate_hz, live, announce)
    if uri.scheme == "view":
        from refusion_edge.stream.outputs.view import ViewSink

        return ViewSink(
            uri,
            statistics or Statistics(),
            gain or ThermalGain(),
            token=token,
            allow_origins=tuple(allow_origins),
            announce=announce,
            clips=clips,
            tls=None if tls is None else (Path(tls[0]), Path(tls[1])),
        )
    return open_file_sink(uri, rate_hz=rate_hz, overwrite=overwrite, announce=announce)


def _open_pipeline(uri: Uri, rate_hz: float | None, live: bool, announce: Callable[[str], object]) -> Sink:
    from refusion_edge.stream.outputs.gstreamer import GStreamerSink
    from refusion_edge.stream.outputs.rtsp import RtspSink

    if uri.scheme == "gst":
        return GStreamerSink(uri, rate_hz=rate_hz, live=live)
    return RtspSink(uri, rate_hz=rate_hz, announce=announce)
