"""Contact sheets."""

from __future__ import annotations

import numpy as np

from refusion_edge.images.montage import MontageRow, montage


def test_images_lie_side_by_side_below_their_captions() -> None:
    red = np.zeros((30, 40, 3), np.uint8)
    red[..., 0] = 200
    gray = np.full((30, 40), 90, np.uint8)
    sheet = montage([MontageRow((red, gray), ("red", "gray")), MontageRow((gray, red), ("", ""))], width_px=40)
    first = sheet[26:56]
    assert first[:, 8:48].tolist() == red.tolist()
    assert (first[:, 56:96] == 90).all()
    captions = sheet[:26]
    assert (captions < 120).any()
    assert sheet.shape == (2 * (26 + 30 + 8), 8 + 2 * 48, 3)


def test_a_missing_image_leaves_its_place_empty() -> None:
    gray = np.full((30, 40), 90, np.uint8)
    sheet = montage([MontageRow((None, gray), ("none", "gray"))], width_px=40)
    assert (sheet[26:56, 8:48] == 250).all()
    assert (sheet[26:56, 56:96] == 90).all()
