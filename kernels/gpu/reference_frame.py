"""A whole frame with the NumPy references of the kernels; no two buffers share memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Argument, Schedule, Tile
from refusion_edge.kernels.gpu.schedule import FUSED, LEVELS, PLANES, SOURCES

# References do not walk strips, so one strip covers the image.
_TILE = Tile(1 << 20, 1 << 20, 1)


def fuse_reference(schedule: Schedule, weights: Mapping[str, Array], planes: Array) -> dict[str, Array]:
    """Fuse two luma planes.

    Args:
        schedule: Launches of one frame.
        weights: Folded weights in the dtypes of the schedule.
        planes: (2, H, W), source a before source b, [0, 1].

    Returns:
        ``fused``, (H, W) floating, before any stretch, and ``levels``, (H, W) uint8, after.
    """
    size_hw = planes.shape[1], planes.shape[2]
    tiles = dict.fromkeys(schedule.kernels, _TILE)
    buffers = {name: np.zeros(buffer.elements(size_hw, tiles), buffer.dtype) for name, buffer in schedule.buffers.items()}
    buffers[PLANES][:] = planes.ravel()

    def value(argument: Argument) -> Any:
        if argument.kind == "size":
            return size_hw[("height", "width").index(argument.name)]
        if argument.kind == "strips":
            return 1
        return buffers[argument.name] if argument.kind == "buffer" else weights[argument.name].ravel()

    for launch in schedule.launches:
        kernel = schedule.kernels[launch.kernel]
        pairs = zip(kernel.parameters, launch.arguments, strict=True)
        given = {parameter.name: value(argument) for parameter, argument in pairs}
        SOURCES[kernel.source].run_reference({**given, **kernel.constants}, kernel.streams)
    return {name: buffers[name].reshape(size_hw) for name in (FUSED, LEVELS)}
