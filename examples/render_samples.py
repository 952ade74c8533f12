"""Render the sample pairs of the package, and the street of `test://`: drawn by `examples/samples`, free of other material."""

import argparse
import sys
from functools import partial
from pathlib import Path

import cv2

# isort: split
from samples import head, interiors, streets

PAIRS = (
    (streets.render_day, "ir_vis/ir/street.png", "ir_vis/vis/street.png"),
    (streets.render_night, "ir_vis/ir/night.png", "ir_vis/vis/night.png"),
    (head.render, "medical/func/brain.png", "medical/mri/brain.png"),
    (interiors.render_desk, "multi_focus/near/desk.png", "multi_focus/far/desk.png"),
    (partial(streets.render_night, 640 / streets.WIDTH, is_empty=True), "scene/ir.jpg", "scene/vis.jpg"),
    (interiors.render_room, "multi_exposure/under/room.png", "multi_exposure/over/room.png"),
)
_OPTIONS = {".png": [cv2.IMWRITE_PNG_COMPRESSION, 9], ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 88]}


def main() -> None:
    """Render all pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("refusion_edge/images/samples"), help="folder of the samples")
    options = parser.parse_args()
    # One thread adds in one order, hence the same pixels on every machine.
    cv2.setNumThreads(1)
    for render, *names in PAIRS:
        for name, image in zip(names, render(), strict=True):
            path, stored = options.output / name, image if image.ndim == 2 else image[..., ::-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), stored, _OPTIONS[path.suffix]):
                sys.exit(f"{path} could not be written")
            print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
