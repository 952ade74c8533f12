"""Messages of the type ``sensor_msgs/Image`` as arrays and back; without ROS, for anything that has their fields."""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import InputError

SECOND = 1_000_000_000

# Type of a number, channels, and the conversion to BGR.
_ENCODINGS: dict[str, tuple[str, int, int | None]] = {
    "mono8": ("u1", 1, None), "8UC1": ("u1", 1, None), "mono16": ("u2", 1, None), "16UC1": ("u2", 1, None),
    "16SC1": ("i2", 1, None), "32FC1": ("f4", 1, None), "bgr8": ("u1", 3, None), "8UC3": ("u1", 3, None),
    "rgb8": ("u1", 3, cv2.COLOR_RGB2BGR), "bgra8": ("u1", 4, cv2.COLOR_BGRA2BGR), "rgba8": ("u1", 4, cv2.COLOR_RGBA2BGR),
    "yuv422_yuy2": ("u1", 2, cv2.COLOR_YUV2BGR_YUY2), "yuv422": ("u1", 2, cv2.COLOR_YUV2BGR_UYVY),
}  # fmt: skip


def to_array(message: Any) -> Array:
    """The pixels of a message: (H, W), or (H, W, 3) BGR, copied so that the message may go.

    Raises:
        InputError: The encoding is unknown, the size is impossible, or there are too few bytes.
    """
    if message.encoding not in _ENCODINGS:
        raise InputError(
            f"images of the encoding '{message.encoding}' cannot be read", f"convert them to one of {', '.join(_ENCODINGS)}",
            expected=tuple(_ENCODINGS), got=message.encoding,
        )  # fmt: skip
    kind, channels, conversion = _ENCODINGS[message.encoding]
    number = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    height, width = message.height, message.width
    row = width * channels * number.itemsize
    data = np.frombuffer(message.data, np.uint8)
    # In 4:2:2, two pixels share their chroma.
    impossible = height == 0 or width == 0 or (channels == 2 and width % 2)
    if impossible or message.step < row or data.size < message.step * height:
        raise InputError(
            f"an image of {height}x{width} in {message.encoding} has {data.size} bytes in rows of {message.step}",
            "check the node that publishes it", expected=row * height, got=data.size,
        )  # fmt: skip
    rows = data[: message.step * height].reshape(height, message.step)[:, :row]
    pixels = np.array(rows).view(number).reshape(height, width, channels)
    if number.byteorder == (">" if sys.byteorder == "little" else "<"):
        pixels = pixels.astype(number.newbyteorder("="))
    if conversion is not None:
        return cv2.cvtColor(pixels, conversion)
    return pixels[..., 0] if channels == 1 else pixels


def stamp_ns(message: Any) -> int:
    """The capture time of a message in nanoseconds."""
    return int(message.header.stamp.sec) * SECOND + int(message.header.stamp.nanosec)


def fill(message: Any, image: Uint8Array, time_ns: int, frame_id: str) -> Any:
    """Fill an empty message with a fused image, mono8 or bgr8, and return it."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(time_ns, SECOND)
    message.header.frame_id = frame_id
    message.height, message.width = image.shape[:2]
    message.encoding = "bgr8" if image.ndim == 3 else "mono8"
    message.is_bigendian = 0
    message.step = image.strides[0]
    message.data = image.tobytes()
    return message
