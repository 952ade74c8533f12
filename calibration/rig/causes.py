"""Why two views could not be aligned: what is tried only after a refusal, to name the likely cause."""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.coarse import SearchRange, search
from refusion_edge.calibration.rig.scene import align_scene
from refusion_edge.calibration.rig.structure import to_scene
from refusion_edge.errors import AlignmentError

# How many times better than upright a turned image has to agree to be looked at closely.
_BETTER = 1.1


def find_cause(
    base: Array, moving: Array, *, sensor_base: bool, sensor_moving: bool, within: SearchRange
) -> tuple[str, str] | None:
    """Look for an alignment outside what was searched: at another scale, turned by quarters, or mirrored.

    Args:
        base: Image of the base view, (H, W) or (H, W, 3); uint8, uint16 or float32.
        moving: Image of the moving view, in the same formats.
        sensor_base: Whether 16-bit or float gray of ``base`` is raw sensor data.
        sensor_moving: Whether that of ``moving`` is.
        within: Range that was searched without success.

    Returns:
        What is wrong and what to do; None if nothing was found.
    """

    def field(image: Array, tried: SearchRange) -> float | None:
        try:
            found = align_scene(base, image, sensor_base=sensor_base, sensor_moving=sensor_moving, within=tried)
        except AlignmentError:
            return None
        return None if found.doubts else found.field

    widest = SearchRange(max(within.shift, SearchRange().shift), max(within.rotation_deg, SearchRange().rotation_deg))
    if within != widest:
        found = field(moving, widest)
        if found is not None:
            return (
                f"the two views fit where the moving one is {found:.2f} times as wide as the base, and within "
                f"{widest.shift:g} of the width and {widest.rotation_deg:g} degrees",
                "correct --ir-fov and --vis-fov, or widen --scale-range, --max-shift or --max-rotation",
            )
    scene = to_scene(base, sensor=sensor_base)

    def score(image: Array) -> float:
        best = search(scene, to_scene(image, sensor=sensor_moving), widest, 1)
        return best[0].score if best else 0.0

    upright = score(moving)
    turned = {
        f"turned by {90 * quarters} degrees clockwise against": np.ascontiguousarray(np.rot90(moving, quarters))
        for quarters in (1, 2, 3)
    }
    turned["mirrored against"] = np.ascontiguousarray(moving[:, ::-1])
    scores = {how: score(image) for how, image in turned.items()}
    how = max(scores, key=lambda each: scores[each])
    if scores[how] > _BETTER * upright and field(turned[how], widest) is not None:
        return (
            f"the moving image seems to be {how} the base image",
            "turn or mirror it back in the settings of the camera; align checkerboard --turn takes turned images as they are",
        )
    return None
