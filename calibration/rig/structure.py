"""The structure shared by an infrared and a visible image: the direction of their edges, not their brightness.

Belongs here: fields of gradient structure, masks of valid image content, and scaling of both. The search for a warp is in
``coarse`` and ``ecc``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.images.luma import to_luma
from refusion_edge.rig.model import Matrix
from refusion_edge.tasks import DISPLAY, SENSOR

Mask = NDArray[np.bool_]

# Border of a warped or letterboxed image: a single value, connected to the edge, at least this part of all pixels.
_LEAST_BORDER = 0.002
# Pixels next to the border of the content that gradients and filters spoil.
_MARGIN_PX = 3
_SMOOTHING_PX = 1.2
# Structures up to about this size are normalized to uniform contrast.
_LOCAL_PX = 15.0
_LOCAL_FLOOR = 0.03
# Edges count half at this multiple of the median gradient.
_HALF_EDGE = 2.0
_LOG_OFFSET = 8.0
# Pixels without a value get the mean of those around them, in which filters find no edge.
_FILLED_PX = 1.5
# What edges around a pixel have in common says little about where two images agree.
_AROUND_PX = 8.0
# A wide blur is done on a copy of which a pixel is this part of its standard deviation, and as many pixels as that at most.
_BLURRED_PART, _LARGEST_PIXEL = 0.3, 4


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image prepared for alignment.

    Attributes:
        luma: (H, W) float32, [0, 255]; where there is no value, the mean of those around it.
        mask: (H, W), True where the image has content and values.
    """

    luma: Float32Array
    mask: Mask

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.luma.shape[1], self.luma.shape[0]


def to_scene(image: Array, *, sensor: bool) -> Scene:
    """Prepare an image for alignment.

    Args:
        image: (H, W) or (H, W, 3) RGB of whole or float numbers.
        sensor: Whether 16-bit or float gray is raw sensor data, see ``refusion_edge.images.ranges.to_display``.

    Raises:
        InputError: See ``to_display``.
    """
    found = to_luma(image, SENSOR if sensor else DISPLAY)
    luma: Float32Array = found.values * np.float32(255)
    mask = shown_part(image if image.ndim == 2 else image.max(axis=2))
    if found.invalid is not None:
        mask &= ~found.invalid
        luma = _filled(luma, found.invalid)
    return Scene(luma, mask)


def _filled(luma: Float32Array, invalid: Mask) -> Float32Array:
    known = np.asarray(~invalid, np.float32)
    weight = cv2.GaussianBlur(known, (0, 0), _FILLED_PX)
    around = cv2.GaussianBlur(luma * known, (0, 0), _FILLED_PX) / np.maximum(weight, 1e-3)
    around[weight < 1e-3] = luma[~invalid].mean()
    return np.where(invalid, around, luma).astype(np.float32, copy=False)


def scaled(scene: Scene, factor: float) -> tuple[Scene, Matrix]:
    """Scale an image down.

    Args:
        scene: Image.
        factor: At most 1; sides are rounded.

    Returns:
        The smaller image, and the matrix that maps its points to those of ``scene``, (3, 3).
    """
    width, height = scene.size_wh
    if factor >= 1:
        return scene, np.eye(3)
    size = (max(round(width * factor), 8), max(round(height * factor), 8))
    luma = cv2.resize(scene.luma, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    mask = cv2.resize(scene.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.999
    step_x, step_y = width / size[0], height / size[1]
    # The center of a large pixel is the mean of the centers of its constituents.
    up = np.array([[step_x, 0, (step_x - 1) / 2], [0, step_y, (step_y - 1) / 2], [0, 0, 1]])
    return Scene(luma, mask), up


def warped(scene: Scene, homography: Matrix, size_wh: tuple[int, int]) -> Scene:
    """Warp an image by a homography.

    Args:
        scene: Image.
        homography: Point of the result to point of ``scene``.
        size_wh: Width and height of the result.
    """
    # If the result is coarser than the image, blur first.
    step = float(np.sqrt(abs(np.linalg.det(homography[:2, :2]))))
    luma = cv2.GaussianBlur(scene.luma, (0, 0), 0.5 * step) if step > 1.2 else scene.luma
    flags = cv2.WARP_INVERSE_MAP
    looked_up = cv2.warpPerspective(luma, homography, size_wh, flags=flags | cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpPerspective(scene.mask.astype(np.uint8), homography, size_wh, flags=flags | cv2.INTER_NEAREST)
    return Scene(looked_up.astype(np.float32), mask > 0)


def gradient_structure(scene: Scene) -> tuple[Float32Array, Mask]:
    """Direction of edges as a field that is invariant to reversed contrast.

    The logarithm of the image is normalized to uniform local contrast; its gradient g, as a complex number, then becomes
    ``g^2 / |g|^2 * |g|^2 / (|g|^2 + c^2)``: the doubled angle, which makes bright-to-dark and dark-to-bright equal, with a
    length that separates edges from noise.

    Args:
        scene: Image.

    Returns:
        (H, W, 2) float32 of length at most 1, 0 where it is unknown, and the mask of where it is known.
    """
    logarithm = np.log(scene.luma + _LOG_OFFSET).astype(np.float32)
    known = scene.mask.astype(np.float32)
    # Means over known pixels only, so that a black border does not bleed in.
    weight = np.maximum(_blurred(known, _LOCAL_PX), 1e-3)
    mean = _blurred(logarithm * known, _LOCAL_PX) / weight
    variance = _blurred((logarithm - mean) ** 2 * known, _LOCAL_PX) / weight
    even = cv2.GaussianBlur((logarithm - mean) / np.sqrt(variance + _LOCAL_FLOOR**2), (0, 0), _SMOOTHING_PX)
    x, y = cv2.Scharr(even, cv2.CV_32F, 1, 0, scale=1 / 32), cv2.Scharr(even, cv2.CV_32F, 0, 1, scale=1 / 32)
    energy = x * x + y * y
    mask = shrunk(scene.mask, _MARGIN_PX)
    half = _HALF_EDGE**2 * float(np.median(energy[mask])) if mask.any() else 1.0
    weight = mask / (energy + max(half, 1e-9))
    return np.dstack(((x * x - y * y) * weight, 2 * x * y * weight)).astype(np.float32), mask


def averaged(structure: Float32Array, mask: Mask, size_wh: tuple[int, int], blur_px: float = 0.0) -> tuple[Float32Array, Mask]:
    """Scale a field. If it shrinks, each pixel is the mean of those it covers, with edges that a smaller image would have lost.

    Args:
        structure: (H, W, C).
        mask: (H, W), True where it is known.
        size_wh: Width and height of the result.
        blur_px: Standard deviation of a blur of the result, in its pixels.

    Returns:
        The field and the mask of its pixels of which more than half is known.
    """
    if (mask.shape[1], mask.shape[0]) != size_wh:
        how = cv2.INTER_AREA if size_wh[0] < mask.shape[1] else cv2.INTER_LINEAR
        mask = cv2.resize(mask.astype(np.float32), size_wh, interpolation=how) > 0.5
        small = cv2.resize(structure, size_wh, interpolation=how).reshape(*mask.shape, -1)
        structure = (small * mask[..., None]).astype(np.float32)
    if blur_px:
        structure = cv2.GaussianBlur(structure, (0, 0), blur_px).reshape(structure.shape).astype(np.float32)
    return structure, mask


def without_mean(structure: Float32Array, mask: Mask) -> Float32Array:
    """Subtract from a field, (H, W, C), its mean over the known pixels around each pixel."""
    known = np.maximum(_blurred(mask.astype(np.float32), _AROUND_PX), 1e-3)[..., None]
    around = _blurred(structure, _AROUND_PX).reshape(structure.shape)
    return ((structure - around / known) * mask[..., None]).astype(np.float32)


def _blurred(values: Float32Array, sigma_px: float) -> Float32Array:
    """A Gaussian blur, on a smaller copy where that makes no difference."""
    height, width = values.shape[:2]
    pixel = min(_LARGEST_PIXEL, int(_BLURRED_PART * sigma_px), min(height, width) // 8)
    if pixel < 2:
        return cv2.GaussianBlur(values, (0, 0), sigma_px).astype(np.float32)
    small = cv2.resize(values, (round(width / pixel), round(height / pixel)), interpolation=cv2.INTER_AREA)
    # Averaging over the pixels blurs by itself.
    blurred = cv2.GaussianBlur(small, (0, 0), np.sqrt(sigma_px**2 - (pixel**2 - 1) / 12) / pixel)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def edge_strength(structure: Float32Array, mask: Mask) -> Float32Array:
    """Strength of edges without their direction, minus its mean: (H, W, 1) from (H, W, 2)."""
    strength = np.linalg.norm(structure, axis=2)
    centered: Float32Array = ((strength - strength[mask].mean()) * mask).astype(np.float32)[..., None]
    return centered


def shrunk(mask: Mask, margin_px: int) -> Mask:
    """Erode a mask by a margin; beyond the edge of the image it counts as empty."""
    kernel = np.ones((2 * margin_px + 1, 2 * margin_px + 1), np.uint8)
    eroded = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return eroded > 0


def shown_part(gray: Array) -> Mask:
    """Mask of image content: everything but borders of a single value at the corners, as left by warps and letterboxes.

    Args:
        gray: (H, W), any dtype.

    Returns:
        (H, W), True where there is an image.
    """
    shown = np.ones(gray.shape, np.bool_)
    for value in {gray[0, 0].item(), gray[0, -1].item(), gray[-1, 0].item(), gray[-1, -1].item()}:
        _, labels, stats, _ = cv2.connectedComponentsWithStats((gray == value).astype(np.uint8), connectivity=4)
        corners = {int(labels[y, x]) for y in (0, -1) for x in (0, -1)} - {0}
        for label in corners:
            if stats[label, cv2.CC_STAT_AREA] >= _LEAST_BORDER * gray.size:
                shown &= labels != label
    return shown
