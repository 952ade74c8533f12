"""Does the reconstruction error see lost detail? Maps of R's error beside the areas where the fused image has lost something.

python -m benchmarks.reconstruction_maps RUN [--a A.png --b B.png] [-o maps.png]

RUN is a run of ``ir_vis`` that trained R, or one of its checkpoints. By default the sample pairs are used. Per pair it prints,
for detail lost in glare and for faint hot objects, the share of the image, the ratio of R's mean error inside that area to
that outside, the correlation of the error with the amount lost, pixel by pixel, and how much the error inside falls if
the fused image gets back what it has lost: if that is 0 or less, the reconstruction loss has no reason to ask for it.

Areas and amounts are those of ``refusion_edge.train.outer``, detail lost in glare and contrast lost by hot objects. The
error is that of the reconstruction loss: the larger of both sources' errors, in intensity plus in gradient, squared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.luma import to_luma8
from refusion_edge.images.montage import MontageRow, montage
from refusion_edge.images.samples import sample_paths
from refusion_edge.tasks import find_task
from refusion_edge.train.layers import Parameters
from refusion_edge.train.loop import build_networks
from refusion_edge.train.losses import gradient_magnitude
from refusion_edge.train.meta import Networks
from refusion_edge.train.outer import lost_contrast, lost_detail
from refusion_edge.train.state import initial_state, read_state, restore
from refusion_edge.train.targets import clipped_pixels, local_contrast

TASK = "ir_vis"
# What counts as lost: a gradient magnitude, and eight levels of contrast.
_LEAST = {"glare": 0.1, "targets": 8 / 255}
_LEAST_AREA_PX = 50
_SMALL_SHARE = 0.1
_TILE_PX = 220
_SHOWN_PERCENTILE = 99


@dataclass(frozen=True, slots=True)
class Judge:
    """F and R of a run.

    Attributes:
        networks: As functions of their parameters.
        theta: Parameters of F.
        rho: Parameters of R.
    """

    networks: Networks
    theta: Parameters
    rho: Parameters

    @torch.no_grad()
    def fuse(self, a: Tensor, b: Tensor) -> Tensor:
        """Fuse two planes, (1, 1, H, W) each."""
        return self.networks.fuse(self.theta, a, b)

    @torch.no_grad()
    def error(self, fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """What the reconstruction loss is the mean of, (1, 1, H, W)."""
        found = self.networks.reconstruct(self.rho, fused)
        pairs = tuple(zip(found, (a, b), strict=True))
        intensity = torch.maximum(*((x - y).abs() for x, y in pairs))
        gradient = torch.maximum(*((gradient_magnitude(x) - gradient_magnitude(y)).abs() for x, y in pairs))
        return intensity.square() + gradient.square()


@dataclass(frozen=True, slots=True)
class Loss:
    """What a fused plane has lost.

    Attributes:
        name: ``glare`` or ``targets``.
        amount: At each pixel, (1, 1, H, W).
        restored: The fused plane with it: the contrast of the other source added in glare, and that which hot objects lack.
            Same shape.
        left: What is still lost then.
    """

    name: str
    amount: Tensor
    restored: Tensor
    left: Tensor

    @property
    def area(self) -> Tensor:
        """Where it counts, bool, same shape."""
        return self.amount > _LEAST[self.name]


@dataclass(frozen=True, slots=True)
class Errors:
    """R's error and what was lost.

    Attributes:
        share: Of the image that has lost something.
        ratio: Mean error in that area relative to that elsewhere.
        correlation: Of the error with the amount lost, over the image.
        left: Share of what was lost in that area that is still lost in the restored plane.
        fall: Share of the error in that area that goes away with the restored plane; below 0 if the error rises.
        slope: The same, extrapolated from the first tenth of the way there: what a gradient sees.
    """

    share: float
    ratio: float
    correlation: float
    left: float
    fall: float
    slope: float


def main() -> int:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that trained R, or one of its checkpoints")
    parser.add_argument("--a", metavar="FILE", help="infrared image (default: the sample pairs)")
    parser.add_argument("--b", metavar="FILE", help="visible image")
    parser.add_argument("-o", "--output", metavar="FILE", help="sheet of maps")
    options = parser.parse_args()
    if bool(options.a) != bool(options.b):
        parser.error("--a and --b go together")

    judge = judge_of(options.run)
    files = [(options.a, options.b)] if options.a else [(sample.a, sample.b) for sample in sample_paths(TASK)]
    roles = find_task(TASK).roles
    rows = []
    for names in files:
        levels = [to_luma8(read_image(path), role) for path, role in zip(names, roles, strict=True)]
        a, b = (plane_of(plane) for plane in levels)
        fused = judge.fuse(a, b)
        for loss in losses_of(fused, a, b):
            found = errors_of(judge, loss, fused, a, b)
            print(
                f"{Path(names[0]).stem} {loss.name}: {found.share:.1%} of the image, error there {found.ratio:.2f} times that "
                f"elsewhere, correlation {found.correlation:+.2f}, falls by {found.fall:+.1%} if restored "
                f"({found.left:.0%} still lost), at first at a rate of {found.slope:+.1%}"
            )
        rows.append(_row(judge, levels, fused, a, b))
    if options.output:
        write_image(options.output, montage(rows, _TILE_PX))
    return 0


def judge_of(run: Path) -> Judge:
    """Take F and R of a run's newest checkpoint, or of the given one."""
    checkpoint = read_state(run)
    state = initial_state(checkpoint.settings, torch.device("cpu"))
    restore(state, checkpoint)
    return Judge(build_networks(checkpoint.settings), state.average, state.rho)


def plane_of(levels: Array) -> Tensor:
    """A plane (1, 1, H, W) in [0, 1] of levels (H, W) uint8."""
    plane: Float32Array = (levels[None, None] / np.float32(255)).astype(np.float32)
    return torch.from_numpy(plane)


def losses_of(fused: Tensor, a: Tensor, b: Tensor) -> Iterator[Loss]:
    """What a fused plane has lost, where that is at least a few pixels."""
    shown = clipped_pixels(b) * local_contrast(a) + clipped_pixels(a) * local_contrast(b)
    in_glare = Loss("glare", lost_detail(fused, a, b), fused + shown, lost_detail(fused + shown, a, b))
    lacking = lost_contrast(fused, a)
    of_targets = Loss("targets", lacking, fused + lacking, lost_contrast(fused + lacking, a))
    return (loss for loss in (in_glare, of_targets) if loss.area.sum() >= _LEAST_AREA_PX)


def errors_of(judge: Judge, loss: Loss, fused: Tensor, a: Tensor, b: Tensor) -> Errors:
    """Measure R's error in the area of a loss."""

    def error(share: float) -> Tensor:
        return judge.error(torch.lerp(fused, loss.restored, share), a, b)

    before = error(0.0)
    inside, outside = before[loss.area].mean(), before[~loss.area].mean()
    correlation = float(np.corrcoef(before.flatten(), loss.amount.flatten())[0, 1])
    left = loss.left[loss.area].mean() / loss.amount[loss.area].mean()
    fall, slope = ((1 - error(share)[loss.area].mean() / inside) / share for share in (1.0, _SMALL_SHARE))
    share = loss.area.float().mean().item()
    return Errors(share, (inside / outside).item(), correlation, left.item(), fall.item(), slope.item())


def _row(judge: Judge, levels: list[Array], fused: Tensor, a: Tensor, b: Tensor) -> MontageRow:
    with torch.no_grad():
        found = judge.networks.reconstruct(judge.rho, fused)
    error = judge.error(fused, a, b).sqrt()
    lost = lost_detail(fused, a, b), lost_contrast(fused, a)
    planes = [fused, *found, error, *lost]
    scales = [1.0, 1.0, 1.0, *(max(float(np.percentile(plane, _SHOWN_PERCENTILE)), 0.05) for plane in planes[3:])]
    captions = "infrared", "visible", "fused", "infrared by R", "visible by R", "error of R", "lost in glare", "lost of targets"
    shown = [_gray(plane / scale) for plane, scale in zip(planes, scales, strict=True)]
    return MontageRow([*levels, *shown], captions)


def _gray(plane: Tensor) -> Uint8Array:
    image: Uint8Array = np.rint(plane[0, 0].clamp(0, 1).numpy() * 255).astype(np.uint8)
    return image


if __name__ == "__main__":
    sys.exit(main())
