"""Render the sample pairs of the package: drawn by the scenes in `examples/samples`, free of third-party material.

python examples/render_samples.py [--output DIR] [--check]
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from refusion_edge.errors import InputError
from refusion_edge.images.io import read_image

# isort: split
from samples import head, interiors, streets
from samples.paint import Uint8Image

PAIRS = (
    (streets.render_day, "ir_vis/ir/street.png", "ir_vis/vis/street.png"),
    (streets.render_night, "ir_vis/ir/night.png", "ir_vis/vis/night.png"),
    (head.render, "medical/func/brain.png", "medical/mri/brain.png"),
    (interiors.render_desk, "multi_focus/near/desk.png", "multi_focus/far/desk.png"),
    (interiors.render_room, "multi_exposure/under/room.png", "multi_exposure/over/room.png"),
)
# OpenCV versions may round differently.
TOLERANCE = 2


def compare(path: Path, image: Uint8Image) -> str:
    """Describe how a stored file differs from an image (BGR or grayscale); "ok" if it does not."""
    try:
        stored = read_image(path)
    except InputError:
        return "missing or unreadable"
    if stored.shape != image.shape:
        return f"its shape is {stored.shape}, that of the image {image.shape}"
    stored = stored[..., ::-1] if stored.ndim == 3 else stored
    difference = int(np.abs(stored.astype(int) - image.astype(int)).max())
    return "ok" if difference <= TOLERANCE else f"differs by up to {difference} gray levels"


def main(arguments: list[str] | None = None) -> int:
    """Render all pairs; return 1 if a checked file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("refusion_edge/images/samples"), help="folder of the samples")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a stored file differs from its rendering")
    options = parser.parse_args(arguments)
    # One thread adds in one order, hence the same pixels on every machine.
    cv2.setNumThreads(1)
    failed = False
    for render, *names in PAIRS:
        for name, image in zip(names, render(), strict=True):
            path, stored = options.output / name, image if image.ndim == 2 else image[..., ::-1]
            if options.check:
                result = compare(path, stored)
                failed |= result != "ok"
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                failed |= not cv2.imwrite(str(path), stored, [cv2.IMWRITE_PNG_COMPRESSION, 9])
                result = f"{path.stat().st_size} bytes"
            print(f"{name}: {result}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
