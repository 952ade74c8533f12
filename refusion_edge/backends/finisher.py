"""Two luma planes through an engine, and what is made of its output: one place for single images and for video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.backends.registry import Backend, Uint8InputBackend, Uint8OutputBackend
from refusion_edge.errors import not_finite
from refusion_edge.images.color import ColorOrder, merge, merge_uint8


@dataclass(frozen=True, slots=True)
class Finisher:
    """Runs an engine, on the device as far as it goes, and finishes what it gives.

    Attributes:
        backend: Runs the network; owned by the caller.
        output_range: Range of the image. An engine that was built for it gives finished levels.
        order: Order of the colours of the image.
    """

    backend: Backend
    output_range: str
    order: ColorOrder

    @property
    def takes_uint8(self) -> bool:
        """Whether the engine takes 8-bit planes as they are."""
        return isinstance(self.backend, Uint8InputBackend) and self.backend.takes_uint8

    def infer(self, a: Array, b: Array, *, finished: bool = True) -> Float32Array | Uint8Array:
        """Run the engine.

        Args:
            a: Luma of source a, (1, 1, H, W) float32, [0, 1]; or uint8, [0, 255], where the engine takes it.
            b: Luma of source b, same shape, in the same way.
            finished: Whether 8-bit levels are as good as the plane.

        Returns:
            The fused plane, (1, 1, H, W) float32; or (H, W) uint8 levels in the output range, finished on the device.

        Raises:
            ShapeError: The graph has a fixed size and the planes have another one.
            GateError: The plane that was finished on the device is not finite.
        """
        if finished and isinstance(self.backend, Uint8OutputBackend) and self.backend.uint8_range == self.output_range:
            return self.backend.fuse_uint8(a, b)
        return self.backend.fuse(a, b)

    def to_luma(self, output: Float32Array | Uint8Array, stretch: Callable[[Float32Array], Array]) -> Array:
        """Bring the output of ``infer`` to [0, 255], (H, W); ``stretch`` does so with a finite plane.

        Raises:
            GateError: The plane is not finite; the weights or the engine are broken.
        """
        if output.dtype == np.uint8:
            return output
        fused = output[0, 0].astype(np.float32, copy=False)
        # The sum is not finite if one value is not, and is several times faster than looking at each.
        if not np.isfinite(fused.sum()):
            raise not_finite(self.backend.name)
        return stretch(fused)

    def to_image(self, luma: Array, chroma: Array | None) -> Uint8Array:
        """Join luma and chroma.

        Args:
            luma: (H, W), [0, 255]; float32, or uint8 levels.
            chroma: For float32 (H, W, 2) as ``merge`` takes it, for levels (H, W, 3) as ``merge_uint8`` does; None for grey.

        Returns:
            (H, W), or (H, W, 3) in this order, uint8.
        """
        if luma.dtype == np.uint8:
            return merge_uint8(luma, chroma, self.order)
        return merge(luma, chroma, self.order)
