"""Full scale of a visible camera whose frames have more than 8 bits.

What the source states counts: a tag of the file, the pixel format of the video. Otherwise the full scale is the smallest
usual bit depth that holds the largest value of all frames so far, as ``fuse`` judges the files of a folder. It never becomes
smaller, so that a picture that turns dark stays dark.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import InputError
from refusion_edge.images.ranges import WHITE, Mask, find_invalid, significant_bits

# Interpolation overshoots slightly.
_FLOAT_MARGIN = 0.01


class FullScale:
    """Brings the frames of one camera to 8 bits. Use one instance per camera, with frames in order of time.

    Args:
        remark: Called with what was judged by the data, when it is first judged and when it changes.
    """

    def __init__(self, remark: Callable[[str], object] = lambda _text: None) -> None:
        self._remark = remark
        self._bits = 0

    def to_levels(self, image: Array, white: float | None, used: Array) -> tuple[Uint8Array, Mask | None]:
        """Scale a frame to [0, 255].

        Args:
            image: (H, W) or (H, W, 3) of whole or float numbers.
            white: The value of full scale that its source states, or None.
            used: The part of the frame that is shown, which alone is judged.

        Returns:
            The levels, same shape, and where the frame has no value, (H, W) or None; such pixels are black.

        Raises:
            InputError: No pixel has a value; or values are negative, or float and outside [0, 1].
        """
        if image.dtype == np.uint8:
            levels: Uint8Array = image
            return levels, None
        invalid = find_invalid(image, isolated=False)
        known = used[np.isfinite(used)] if invalid is not None else used
        if not known.size:
            raise InputError("no pixel of the visible image has a value", "check the camera, or how the file was made")
        least, most = float(known.min()), float(known.max())
        if image.dtype.kind == "f":
            if least < -_FLOAT_MARGIN or most > 1 + _FLOAT_MARGIN:
                raise InputError(
                    f"float values of the visible image range from {least:g} to {most:g}",
                    "scale them to [0, 1], or send whole numbers",
                    expected=(0.0, 1.0),
                    got=(least, most),
                )
            return _scaled(image, 1.0, invalid), invalid
        if least < 0:
            raise InputError(
                f"values of the visible image range from {least:g} to {most:g}, and negative ones mean nothing there",
                "check that the sources are not swapped",
                got=(least, most),
            )
        if white is None or most > white or self._bits:
            white = self._judge(most)
        return _scaled(image, white, None), None

    def _judge(self, most: float) -> float:
        bits = max(self._bits, significant_bits(most))
        if bits != self._bits:
            before, self._bits = self._bits, bits
            found = f"{bits} significant bits, judged by the largest value so far"
            self._remark(found if not before else f"{found} (before: {before}), so that the picture became darker")
        return float((1 << bits) - 1)


def _scaled(image: Array, white: float, invalid: Mask | None) -> Uint8Array:
    factor = WHITE / white
    if image.dtype == np.uint16:
        return cv2.convertScaleAbs(image, alpha=factor).astype(np.uint8, copy=False)
    scaled = image * (np.float32(factor) if image.dtype.itemsize <= 4 and image.dtype.kind == "f" else factor)
    if invalid is not None:
        scaled[invalid] = 0
    levels: Uint8Array = np.rint(scaled.clip(0, WHITE)).astype(np.uint8)
    return levels
