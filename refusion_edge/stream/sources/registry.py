"""The source for a URI."""

from __future__ import annotations

from refusion_edge.errors import UsageError
from refusion_edge.images.io import READABLE_SUFFIXES
from refusion_edge.stream.frames import Side
from refusion_edge.stream.sources.source import Source
from refusion_edge.stream.uri import Uri, frame_pattern


def open_source(uri: Uri, side: Side) -> Source:
    """Create the source that a URI names; entering it as a context manager opens it.

    Raises:
        UsageError: The URI has unknown options, or its scheme cannot be read.
        InputError: The file or folder does not exist.
    """
    if uri.scheme == "test":
        from refusion_edge.stream.sources.synthetic import SyntheticSource

        return SyntheticSource(uri, side)
    if uri.scheme == "file" and (
        uri.path.is_dir() or frame_pattern(uri.target) is not None or uri.path.suffix.lower() in READABLE_SUFFIXES
    ):
        from refusion_edge.stream.sources.folders import FolderSource

        return FolderSource(uri, side)
    if uri.scheme in ("csi", "gst"):
        from refusion_edge.stream.sources.gstreamer import GStreamerSource

        return GStreamerSource(uri, side)
    if uri.scheme in ("file", "v4l2", "rtsp", "rtsps", "http", "https"):
        from refusion_edge.stream.sources.captures import CaptureSource

        return CaptureSource(uri, side)
    raise UsageError(f"{uri} cannot be read as a source", "see 'refusion-edge stream --help'")
