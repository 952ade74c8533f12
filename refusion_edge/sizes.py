"""Image sizes that an engine accepts: a fixed size, or a range with an optimum."""

from __future__ import annotations

from dataclasses import dataclass

from refusion_edge.errors import UsageError
from refusion_edge.text import printable

MIN_SIDE = 8
# One axis of an image; beyond this the attention's sums were never tested.
MAX_SIDE = 16384
_LONGEST_SIZE = len("16384x16384")


@dataclass(frozen=True, slots=True)
class SizeRange:
    """The range of image sizes that one engine accepts; TensorRT calls it an optimization profile.

    Attributes:
        min_hw: Minimum height and width.
        opt_hw: Optimum: the height and width that TensorRT picks its kernels for.
        max_hw: Maximum height and width; determines how much memory the engine may need.
    """

    min_hw: tuple[int, int]
    opt_hw: tuple[int, int]
    max_hw: tuple[int, int]

    def __str__(self) -> str:
        return ":".join(f"{height}x{width}" for height, width in (self.min_hw, self.opt_hw, self.max_hw))

    def holds(self, size_hw: tuple[int, int]) -> bool:
        """Tell whether images of this size are within the range."""
        return all(low <= side <= high for low, side, high in zip(self.min_hw, size_hw, self.max_hw, strict=True))


# Thumbnails, the usual thermal camera, and the largest one: what `dynamic` means where an engine needs bounds.
DYNAMIC = SizeRange((64, 64), (480, 640), (1024, 1280))


def parse_sizes(text: str) -> tuple[tuple[int, int] | None, SizeRange | None]:
    """Parse ``480x640``, ``dynamic``, or ``64x64:480x640:1024x1280`` (minimum, optimum, maximum; height x width).

    Returns:
        The fixed size or None, and the range or None; both None for ``dynamic``.

    Raises:
        UsageError: The text is none of these, or the three sizes are not in order.
    """
    if ":" not in text:
        return parse_size(text), None
    sizes = [parse_size(part) for part in text.split(":")]
    min_hw, opt_hw, max_hw = sizes if len(sizes) == 3 else (None, None, None)
    if min_hw is None or opt_hw is None or max_hw is None:
        raise UsageError(
            f"'{printable(text, 80)}' is not a range of sizes", "write MIN:OPT:MAX, such as 64x64:480x640:1024x1280", got=text
        )
    sizes_hw = SizeRange(min_hw, opt_hw, max_hw)
    if not (sizes_hw.holds(opt_hw) and sizes_hw.holds(min_hw)):
        raise UsageError(
            f"the sizes '{text}' are not in ascending order", "write MIN:OPT:MAX with min <= opt <= max on each side", got=text
        )
    return None, sizes_hw


def parse_size(text: str) -> tuple[int, int] | None:
    """Parse ``480x640`` (height x width), or ``dynamic`` as None.

    Raises:
        UsageError: The text is neither, or a side is out of range.
    """
    if text == "dynamic":
        return None
    height, _, width = text.lower().partition("x")
    # Bounded before it is read as a number: Python refuses to read thousands of digits.
    if not (text.isascii() and height.isdecimal() and width.isdecimal() and len(text) <= _LONGEST_SIZE):
        raise UsageError(
            f"'{printable(text, 80)}' is not a size", "write HEIGHTxWIDTH, such as 480x640, or 'dynamic'", got=text
        )
    size_hw = int(height), int(width)
    check_size(size_hw)
    return size_hw


def check_size(size_hw: tuple[int, int]) -> None:
    """Check that the network can fuse images of this height and width.

    Raises:
        UsageError: A side is out of range.
    """
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size_hw):
        raise UsageError(
            f"the size {size_hw[0]}x{size_hw[1]} is out of range",
            f"choose sides from {MIN_SIDE} to {MAX_SIDE} pixels",
            expected=(MIN_SIDE, MAX_SIDE),
            got=size_hw,
        )
