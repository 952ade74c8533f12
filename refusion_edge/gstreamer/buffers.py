"""Pixels between GStreamer's buffers and arrays; a plane is copied once in each direction."""

from __future__ import annotations

from typing import Any

import gi
import numpy as np

for _name in ("Gst", "GstVideo"):
    gi.require_version(_name, "1.0")

from gi.repository import Gst, GstVideo

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.gstreamer.pixels import Layout, default_layout, to_array, write_pixels


def read_buffer(buffer: Any, layout: Layout) -> Array:
    """Copy the pixels of a buffer, which goes back to its pool, or convert them.

    Args:
        buffer: A buffer of GStreamer.
        layout: Where its pixels lie, unless it says so itself.

    Returns:
        See ``to_array``.

    Raises:
        InputError: See there.
    """
    meta = GstVideo.buffer_get_video_meta(buffer)
    if meta is not None:
        # Without the metadata of a plane that is not read, as of chroma behind gray.
        count = len(layout.offsets)
        offsets, strides = tuple(meta.offset)[:count], tuple(meta.stride)[:count]
        layout = Layout(layout.format, layout.size_wh, offsets, strides, layout.matrix, layout.full_range)
    with buffer.map(Gst.MapFlags.READ) as mapped:
        pixels = to_array(mapped.data, layout)
        # The memory is the buffer's.
        return pixels.copy() if np.may_share_memory(pixels, np.frombuffer(mapped.data, np.uint8)) else pixels


def make_buffer(image: Uint8Array, format_name: str) -> Any:
    """Make a buffer with the pixels of an image, as ``write_pixels`` lays them out."""
    buffer = Gst.Buffer.new_allocate(None, default_layout(format_name, (image.shape[1], image.shape[0])).nbytes, None)
    with buffer.map(Gst.MapFlags.WRITE) as mapped:
        write_pixels(image, format_name, np.frombuffer(mapped.data, np.uint8))
    return buffer
