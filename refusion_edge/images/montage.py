"""Contact sheets: captioned rows of sources and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from refusion_edge.arrays import Array, Uint8Array

_GAP_PX = 8
_CAPTION_PX = 26
_BACKGROUND = 250
_INK = (40, 40, 40)


@dataclass(frozen=True, slots=True)
class MontageRow:
    """One row of a contact sheet.

    Attributes:
        images: Images from left to right, each (H, W) or (H, W, 3) RGB uint8, all of one size; None leaves its place empty.
        captions: One caption per image.
    """

    images: Sequence[Array | None]
    captions: Sequence[str]


def montage(rows: Sequence[MontageRow], width_px: int = 384) -> Uint8Array:
    """Lay images out in rows with captions above them.

    Args:
        rows: Rows from top to bottom, all with the same number of images.
        width_px: Width of every image; the height keeps the aspect ratio of the row's first image.

    Returns:
        (H, W, 3) RGB uint8.
    """
    return np.vstack([_strip(row, width_px) for row in rows])


def _strip(row: MontageRow, width_px: int) -> Uint8Array:
    first = next(image for image in row.images if image is not None)
    height_px = round(width_px * first.shape[0] / first.shape[1])
    count = len(row.images)
    sheet = np.full((_CAPTION_PX + height_px + _GAP_PX, _GAP_PX + count * (width_px + _GAP_PX), 3), _BACKGROUND, np.uint8)
    for index, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
        left = _GAP_PX + index * (width_px + _GAP_PX)
        cv2.putText(sheet, caption, (left, _CAPTION_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
        if image is None:
            continue
        color = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        enlarging = width_px > color.shape[1]
        sheet[_CAPTION_PX : _CAPTION_PX + height_px, left : left + width_px] = cv2.resize(
            color, (width_px, height_px), interpolation=cv2.INTER_CUBIC if enlarging else cv2.INTER_AREA
        )
    return sheet
