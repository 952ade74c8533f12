"""The source for a URI."""

from __future__ import annotations

from refusion_edge.errors import UsageError
from refusion_edge.images.io import READABLE_SUFFIXES
from refusion_edge.machine import require
from refusion_edge.stream.frames import Side
from refusion_edge.stream.sources.folders import FolderSource
from refusion_edge.stream.sources.pacing import PacedSource
from refusion_edge.stream.sources.source import Source
from refusion_edge.stream.uri import NETWORK_SCHEMES, Uri, frame_pattern


def open_pair(ir: Uri, vis: Uri, *, best_effort: bool = False) -> tuple[Source, Source]:
    """Create the two sources of a stream; the frames of two image folders meet by number or stem.

    Of two files, only one of which has a clock, the other one begins with it.

    Args:
        ir: The infrared source.
        vis: The visible source.
        best_effort: See ``open_source``.

    Raises:
        UsageError: A URI has unknown options, or its scheme cannot be read.
        InputError: A file or folder does not exist, or two folders have nothing in common.
    """
    sources = open_source(ir, "ir", best_effort=best_effort), open_source(vis, "vis", best_effort=best_effort)
    if isinstance(sources[0], FolderSource) and isinstance(sources[1], FolderSource):
        sources[0].meet(sources[1])
    if sources[0].live or sources[1].live or sources[0].absolute == sources[1].absolute:
        return sources
    first, second = (PacedSource(source, from_zero_only=True) if source.absolute else source for source in sources)
    return first, second


def open_source(uri: Uri, side: Side, *, best_effort: bool = False) -> Source:
    """Create the source that a URI names; entering it as a context manager opens it.

    Args:
        uri: The source.
        side: Which camera it is.
        best_effort: Whether a camera that does not grant what the URI asks for is used in its nearest mode.

    Raises:
        UsageError: The URI has unknown options, or its scheme cannot be read.
        InputError: The file or folder does not exist.
        MissingDependencyError: The source is a video, and PyAV is not installed.
    """
    if uri.scheme == "test":
        from refusion_edge.stream.sources.synthetic import SyntheticSource

        return SyntheticSource(uri, side)
    if uri.scheme == "file" and (
        uri.path.is_dir() or frame_pattern(uri.target) is not None or uri.path.suffix.lower() in READABLE_SUFFIXES
    ):
        return FolderSource(uri, side)
    if uri.scheme in ("csi", "gst"):
        from refusion_edge.stream.sources.gstreamer import GStreamerSource

        return GStreamerSource(uri, side)
    if uri.scheme == "v4l2":
        from refusion_edge.stream.sources.v4l2 import V4l2Source

        return V4l2Source(uri.with_option("best-effort", "1") if best_effort else uri, side)
    if uri.scheme == "file" or uri.scheme in NETWORK_SCHEMES:
        require("av", "stream", "reading video")
        from refusion_edge.stream.sources.network import is_file
        from refusion_edge.stream.sources.video import VideoSource

        return VideoSource(uri, side, live=uri.scheme != "file" and not is_file(uri))
    raise UsageError(f"{uri} cannot be read as a source", "see 'refusion-edge stream --help'")
