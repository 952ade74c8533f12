"""A training folder as one small file, for a machine that little can be carried to.

python -m benchmarks.gpu_pack --task TASK --data DIR -o FILE.zip [--mb 55]
python -m zipfile -e FILE.zip DIR

The file is a ZIP archive of PNG images: the luma of both sources as ``train`` reads them (uint8), in the folders of the task.
Unpacked, it is a training folder. Each pair is cropped around its middle to a square whose side is the same for all, the
largest with which the file stays within ``--mb``; a pair that is smaller stays whole. There is one crop of each pair, so that
none is both trained on and held back.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import cv2

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, RefusionError
from refusion_edge.files import require_writable, write_atomically
from refusion_edge.tasks import TASKS, Task, find_task
from refusion_edge.train.collection import SHARP_FOLDER, Entry, read_planes, survey

MOST_MB = 55.0
SIDES_PX = (4096, 2048, 1024, 768, 640, 512, 448, 384, 320, 256, 192, 128)
"""Sides of a crop that are tried; the smallest is a crop of the training on a GPU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Pack a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="ir_vis", help="fusion task (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="training folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the archive")
    parser.add_argument("--mb", type=float, default=MOST_MB, help="largest size of the file, in MB (default: %(default)g)")
    options = parser.parse_args(argv)
    if not options.mb > 0:
        parser.error(f"--mb is {options.mb:g} but must be above 0")
    try:
        require_writable(options.output)
        data, side_px, pairs = packed(find_task(options.task), options.data, round(options.mb * 1e6))
        write_atomically(options.output, data)
    except RefusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {pairs} pairs, cropped to {side_px} pixels, {len(data) / 1e6:.1f} MB")
    return 0


def packed(task: Task, data: Path, most_bytes: int, sides_px: Sequence[int] = SIDES_PX) -> tuple[bytes, int, int]:
    """Pack a training folder.

    Args:
        task: The task.
        data: The folder.
        most_bytes: Largest size of the archive.
        sides_px: Sides of a crop to try, the largest first.

    Returns:
        The archive, the side of the crops, and the number of pairs and sharp images.

    Raises:
        InputError: The folder has no usable pair, or the smallest crops do not fit.
    """
    entries = survey(data, task, min(sides_px)).entries
    for side_px in sides_px:
        archive = _archive(entries, side_px, most_bytes)
        if archive is not None:
            return archive, side_px, len(entries)
    raise InputError(
        f"{len(entries)} pairs do not fit into {most_bytes / 1e6:g} MB, even with crops of {min(sides_px)} pixels",
        "allow more with --mb",
    )


def _archive(entries: Sequence[Entry], side_px: int, most_bytes: int) -> bytes | None:
    """All entries cropped to a side, or None if they take more than so many bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for entry in entries:
            a, b = (_middle(plane, side_px) for plane in read_planes(entry))
            images = {SHARP_FOLDER: a} if entry.b is None else {entry.task.folder_a: a, entry.task.folder_b: b}
            for folder, image in images.items():
                # A fixed date, so that the same images make the same file.
                archive.writestr(zipfile.ZipInfo(f"{folder}/{entry.name}.png"), cv2.imencode(".png", image)[1].tobytes())
            if file.tell() > most_bytes:
                return None
    return file.getvalue() if file.tell() <= most_bytes else None


def _middle(plane: Array, side_px: int) -> Array:
    height, width = plane.shape
    top, left = max(height - side_px, 0) // 2, max(width - side_px, 0) // 2
    return plane[top : top + side_px, left : left + side_px]


if __name__ == "__main__":
    raise SystemExit(main())
