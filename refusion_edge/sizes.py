"""The sizes that a compiled engine takes: one, or a range around a typical one."""

from __future__ import annotations

from dataclasses import dataclass

from refusion_edge.errors import UsageError

MIN_SIDE = 8
# One axis of an image; beyond this the attention's sums were never tested.
MAX_SIDE = 16384
_LONGEST_SIZE = len("16384x16384")


@dataclass(frozen=True, slots=True)
class SizeRange:
    """Least, typical and largest height and width of the pictures that one engine takes.

    TensorRT calls this an optimization profile. It picks its kernels for the typical size.

    Attributes:
        min_hw: Least height and width.
        opt_hw: Height and width that the engine is tuned for.
        max_hw: Largest height and width; decides how much memory the engine may need.
    """

    min_hw: tuple[int, int]
    opt_hw: tuple[int, int]
    max_hw: tuple[int, int]

    def __str__(self) -> str:
        return ":".join(f"{height}x{width}" for height, width in (self.min_hw, self.opt_hw, self.max_hw))

    def holds(self, size_hw: tuple[int, int]) -> bool:
        """Tell whether pictures of this size fit."""
        return all(low <= side <= high for low, side, high in zip(self.min_hw, size_hw, self.max_hw, strict=True))


# Thumbnails, the usual thermal camera, and the largest one: what `dynamic` means where an engine needs bounds.
DYNAMIC = SizeRange((64, 64), (480, 640), (1024, 1280))


def parse_sizes(text: str) -> tuple[tuple[int, int] | None, SizeRange | None]:
    """Read ``480x640``, ``dynamic``, or ``64x64:480x640:1024x1280`` (least, typical, largest; height x width).

    Returns:
        The fixed size or None, and the range or None; both None for ``dynamic``.

    Raises:
        UsageError: The text is none of these, or the three sizes are not in order.
    """
    if ":" not in text:
        return parse_size(text), None
    sizes = [parse_size(part) for part in text.split(":")]
    least, typical, largest = sizes if len(sizes) == 3 else (None, None, None)
    if least is None or typical is None or largest is None:
        raise UsageError(f"expected sizes as LEAST:TYPICAL:LARGEST (64x64:480x640:1024x1280), got '{text[:80]}'.")
    sizes_hw = SizeRange(least, typical, largest)
    if not (sizes_hw.holds(typical) and sizes_hw.holds(least)):
        raise UsageError(f"expected sizes that grow from the least over the typical to the largest, got '{text}'.")
    return None, sizes_hw


def parse_size(text: str) -> tuple[int, int] | None:
    """Read ``480x640`` (height x width), or ``dynamic`` as None.

    Raises:
        UsageError: The text is neither, or a side is out of range.
    """
    if text == "dynamic":
        return None
    height, _, width = text.lower().partition("x")
    # Bounded before it is read as a number: Python refuses to read thousands of digits.
    if not (text.isascii() and height.isdecimal() and width.isdecimal() and len(text) <= _LONGEST_SIZE):
        raise UsageError(f"expected a size as HEIGHTxWIDTH (480x640) or 'dynamic', got '{text}'.")
    size_hw = int(height), int(width)
    check_size(size_hw)
    return size_hw


def check_size(size_hw: tuple[int, int]) -> None:
    """Make sure that the network can fuse images of this height and width.

    Raises:
        UsageError: A side is out of range.
    """
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size_hw):
        raise UsageError(
            f"expected sides from {MIN_SIDE} to {MAX_SIDE} pixels, got {size_hw[0]}x{size_hw[1]}; choose another size."
        )
