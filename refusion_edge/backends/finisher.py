"""Running an engine on two luma planes and turning its output into an image, for single images and video alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.backends.registry import Backend, Uint8InputBackend, Uint8OutputBackend
from refusion_edge.errors import GateError, not_finite
from refusion_edge.images.color import Colored, ColorOrder, join, merge, merge_uint8

# Rounding in half precision passes the ends of the range by less.
_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Finisher:
    """Runs an engine and finishes its output, on the device as far as the engine supports it.

    Attributes:
        backend: Runs the network; owned by the caller.
        output_range: Range of the image. An engine built with a uint8 output in this range finishes on the device.
        order: Channel order of the image.
    """

    backend: Backend
    output_range: str
    order: ColorOrder

    @property
    def takes_uint8(self) -> bool:
        """Whether the engine accepts uint8 planes."""
        return isinstance(self.backend, Uint8InputBackend) and self.backend.takes_uint8

    def infer(self, a: Array, b: Array, *, finished: bool = True) -> Float32Array | Uint8Array:
        """Run the engine.

        Args:
            a: Luma of source a, (1, 1, H, W) float32, [0, 1]; or uint8, [0, 255], if the engine accepts it.
            b: Luma of source b, same shape; dtype and range likewise.
            finished: Whether the caller accepts a finished uint8 image instead of the plane.

        Returns:
            The fused plane, (1, 1, H, W) float32; or (H, W) uint8 in the output range, finished on the device.

        Raises:
            ShapeError: The planes do not have the fixed size of the engine.
            GateError: The output has another shape or dtype, or a plane finished on the device contains NaN or infinities.
        """
        if finished and isinstance(self.backend, Uint8OutputBackend) and self.backend.uint8_range == self.output_range:
            return self._of(self.backend.fuse_uint8(a, b), a.shape[2:], np.uint8)
        return self._of(self.backend.fuse(a, b), a.shape, np.float32)

    def _of(self, output: Array, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        if output.shape == shape and output.dtype == dtype:
            return output
        raise GateError(
            f"the back end {self.backend.name} returns {output.dtype} of the shape {output.shape} instead of "
            f"{np.dtype(dtype)} of the shape {shape}",
            "check the bundle with 'refusion-edge verify'",
            expected=shape,
            got=output.shape,
        )

    def finish(
        self,
        output: Float32Array | Uint8Array,
        chroma: Float32Array | Colored | None,
        stretch: Callable[[Float32Array], Array],
        *,
        beside: tuple[Array, Array] | None = None,
        rounded: bool = True,
    ) -> Array:
        """Turn the output of ``infer`` into an image.

        Args:
            output: Result of ``infer``.
            chroma: None for gray; (H, W, 2) as in ``merge`` if ``stretch`` returns float32; as in ``merge_uint8`` if it returns
                uint8.
            stretch: Maps a plane, (H, W), to luma in [0, 255], float32 or uint8; not called for an output that was finished
                on the device.
            beside: Luma of the dtype of the output, (H, W), and where it replaces the fused one, (H, W) bool.
            rounded: Whether the image is uint8; otherwise it is float32, [0, 255], if ``stretch`` returns float32.

        Returns:
            (H, W), or (H, W, 3) in the channel order ``order``.

        Raises:
            GateError: The plane contains NaN, infinities or values outside [0, 1]; the weights or the engine are broken.
        """
        luma: Array = output
        if output.dtype != np.uint8:
            fused = output[0, 0].astype(np.float32, copy=False)
            # Both are NaN if any value is.
            low, high = float(fused.min()), float(fused.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise not_finite(self.backend.name)
            if low < -_TOLERANCE or high > 1 + _TOLERANCE:
                raise GateError(
                    f"the back end {self.backend.name} returns values from {low:.3g} to {high:.3g} instead of 0 to 1",
                    "check the weights with 'refusion-edge inspect' or the bundle with 'refusion-edge verify'",
                    expected=(0, 1),
                    got=(low, high),
                )
            luma = stretch(fused)
        if beside is not None:
            np.copyto(luma, beside[0], where=beside[1])
        if luma.dtype == np.uint8:
            assert chroma is None or isinstance(chroma, Colored)
            return merge_uint8(luma, chroma)
        assert not isinstance(chroma, Colored)
        return merge(luma, chroma, self.order) if rounded else join(luma, chroma, self.order)
