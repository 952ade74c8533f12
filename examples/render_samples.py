"""Render the sample pairs that ship with the package.

Everything is drawn from scene descriptions in `examples/samples`, so the pictures are
free of third-party material and every run gives the same pixels.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

# isort: split
from samples import desk, head, night, room, street
from samples.canvas import Picture

DEFAULT_OUTPUT = Path("refusion_edge/images/samples")
# OpenCV versions may round differently.
TOLERANCE = 2


def render_all() -> Iterator[tuple[str, Picture]]:
    """Render every sample.

    Yields:
        Path below the output folder and picture, grey or RGB.
    """
    infrared, visible = street.render()
    yield "ir_vis/ir/street.png", infrared
    yield "ir_vis/vis/street.png", visible
    infrared, visible = night.render()
    yield "ir_vis/ir/night.png", infrared
    yield "ir_vis/vis/night.png", visible
    functional, resonance = head.render()
    yield "medical/func/brain.png", functional
    yield "medical/mri/brain.png", resonance
    near, far = desk.render()
    yield "multi_focus/near/desk.png", near
    yield "multi_focus/far/desk.png", far
    under, over = room.render()
    yield "multi_exposure/under/room.png", under
    yield "multi_exposure/over/room.png", over


def write_picture(path: Path, picture: Picture) -> None:
    """Write a PNG file.

    Args:
        path: File to write; missing folders are created.
        picture: Grey or RGB picture.

    Raises:
        OSError: If the picture cannot be encoded or written.
    """
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise OSError(f"cannot encode {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def read_picture(path: Path) -> Picture | None:
    """Read a PNG file as it is.

    Args:
        path: File.

    Returns:
        Grey or RGB picture, or nothing if there is no readable file.
    """
    if not path.is_file():
        return None
    data = np.frombuffer(path.read_bytes(), np.uint8)
    stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if stored is None:
        return None
    if stored.ndim == 3:
        stored = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    return np.asarray(stored, np.uint8)


def compare(path: Path, picture: Picture) -> str | None:
    """Compare a stored file with its rendering.

    Args:
        path: Stored file.
        picture: Rendering.

    Returns:
        What is wrong, or nothing if the file is up to date.
    """
    stored = read_picture(path)
    if stored is None:
        return "missing or unreadable"
    if stored.shape != picture.shape:
        return f"shape {stored.shape} instead of {picture.shape}"
    difference = int(np.abs(stored.astype(int) - picture.astype(int)).max())
    if difference > TOLERANCE:
        return f"max difference {difference} grey levels"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command line without the program name; default: that of the process.

    Returns:
        Exit status: 1 if a checked file is out of date.
    """
    parser = argparse.ArgumentParser(description="Render the sample pairs.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the samples")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing, fail if a stored file differs from its rendering",
    )
    options = parser.parse_args(arguments)
    # One thread keeps sums in one order, hence the pixels identical on every machine.
    cv2.setNumThreads(1)
    failed = False
    for name, picture in render_all():
        path = options.output / name
        if options.check:
            problem = compare(path, picture)
            failed = failed or problem is not None
            print(f"{name}: {problem or 'ok'}")
        else:
            write_picture(path, picture)
            print(f"{name}: {path.stat().st_size} bytes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
