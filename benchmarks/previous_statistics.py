"""Attention from the statistics of the frame before: what it does to a video of the paper's network.

python -m benchmarks.previous_statistics [--pair INFRARED VISIBLE ...] [--frames 12] [--threads 1]

Run it from the repository's root. The network mixes channels by products over the whole image, so a frame needs several passes.
With the mixing weights of the frame before, it would need a single local pass. Here the network of ``ir_vis`` fuses the
same 320x240 windows of the rendered streets, or of real pairs, with the weights of the frame itself, with those of the frame
before, and with those of the first frame throughout. The first frame always has its own. Scenes, all with sensor noise of 0.6
levels (infrared) and 2 levels (visible):

- ``still``;
- ``pan 2`` and ``pan 8``: the window moves over the picture and back, by so many pixels per frame;
- ``hot``: a hot figure appears at a third of the clip and walks by 4 pixels per frame;
- ``exposure``: the visible image darkens by a third from one frame to the next;
- ``cut``: another picture from the middle of the clip on.

Printed are the worst and the mean PSNR to the frame with its own weights, in dB, before any stretch, and the mean flicker of
both (``refusion_edge.metrics.temporal``), in gray levels per frame. Wanted: at least 50 dB in every frame of every scene.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from torch import Tensor

from refusion_edge.arrays import Float32Array
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.metrics.planes import to_gray_plane
from refusion_edge.metrics.temporal import flicker
from refusion_edge.network import model
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.layers import mixing_weights
from refusion_edge.network.weights import weights_path

WIDTH, HEIGHT = 320, 240
SCENES = ("still", "pan 2", "pan 8", "hot", "exposure", "cut")
WANTED_DB = 50.0
_NOISE_IR, _NOISE_VIS = 0.6 / 255, 2.0 / 255

Planes = tuple[Float32Array, Float32Array]
"""Luma of both sources, (H, W), [0, 1]."""


def main() -> int:
    """Measure and print; returns 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pair", nargs=2, action="append", type=Path, metavar="FILE", help="instead of the streets; repeatable"
    )
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=SCENES)
    parser.add_argument("--frames", type=int, default=12, help="frames of each scene (default: 12)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = [tuple(pair) for pair in options.pair or ()] or [(pair.a, pair.b) for pair in sample_paths("ir_vis")]
    if "cut" in options.scenes and len(paths) < 2:
        parser.error("the scene cut needs two pictures: give --pair twice, or --scenes without cut")
    pictures = [_picture(*pair) for pair in paths]
    network = model.FusionNetwork()
    network.load_state_dict({k: torch.from_numpy(v) for k, v in read_checkpoint(weights_path("ir_vis")).state.items()})
    worst = math.inf
    print(
        f"{'scene':10}{'picture':>24}{'worst dB':>10}{'mean':>7}{'first: worst':>14}{'mean':>7}{'own flicker':>12}{'before':>8}"
    )
    for scene, (index, path) in itertools.product(options.scenes, enumerate(paths)):
        clip = list(frames_of(scene, pictures[index], pictures[(index + 1) % len(pictures)], options.frames))
        own, before, first = (fused_clip(network, clip, kind) for kind in ("own", "before", "first"))
        found = _psnrs(own, before)
        worst = min(worst, *found)
        from_first = _psnrs(own, first)
        print(
            f"{scene:10}{path[0].stem[:22]:>24}{min(found):10.1f}{np.mean(found):7.1f}{min(from_first):14.1f}"
            f"{np.mean(from_first):7.1f}{_mean_flicker(clip, own):12.3f}{_mean_flicker(clip, before):8.3f}",
            flush=True,
        )
    print(f"wanted: at least {WANTED_DB:.0f} dB; worst: {worst:.1f} dB")
    return int(worst < WANTED_DB)


class Memory:
    """Stands in for ``channel_attention``, with the mixing weights of an earlier frame.

    Args:
        kind: ``own``, ``before`` or ``first``: the frame that the weights come from.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._kept: dict[Tensor, Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
        """Mix ``v`` as ``refusion_edge.network.layers.channel_attention`` does; the temperature tells the layers apart."""
        now = mixing_weights(q, k, temperature)
        used = now if self._kind == "own" else self._kept.get(temperature, now)
        if self._kind != "first" or temperature not in self._kept:
            self._kept[temperature] = now
        return (used @ v.flatten(2)).reshape(v.shape)


@torch.inference_mode()
def fused_clip(network: model.FusionNetwork, clip: list[Planes], kind: str) -> list[Float32Array]:
    """Fuse the frames of a clip in order, with the mixing weights of the kind that ``Memory`` names."""
    with patch.object(model, "channel_attention", Memory(kind)):
        return [network(*(torch.from_numpy(plane)[None, None] for plane in planes))[0, 0].numpy() for planes in clip]


def frames_of(scene: str, picture: Planes, other: Planes, frames: int) -> Iterator[Planes]:
    """Draw the frames of a scene."""
    rng = np.random.default_rng(1)
    speed = {"pan 2": 2, "pan 8": 8}.get(scene, 0)
    for number in range(frames):
        shown = other if scene == "cut" and number >= frames // 2 else picture
        room = shown[0].shape[1] - WIDTH
        left = room - abs(room - speed * number % max(2 * room, 1))
        top = (shown[0].shape[0] - HEIGHT) // 2
        heat, light = (plane[top : top + HEIGHT, left : left + WIDTH] for plane in shown)
        if scene == "hot" and number >= frames // 3:
            center = (20 + 4 * (number - frames // 3), HEIGHT * 3 // 5)
            heat = cv2.ellipse(heat.copy(), center, (9, 24), 0, 0, 360, 1.0, cv2.FILLED)
        if scene == "exposure" and number >= frames // 2:
            light = light * np.float32(2 / 3)
        yield _noisy(heat, _NOISE_IR, rng), _noisy(light, _NOISE_VIS, rng)


def _noisy(plane: Float32Array, deviation: float, rng: np.random.Generator) -> Float32Array:
    noisy: Float32Array = (plane + rng.normal(0, deviation, plane.shape)).clip(0, 1).astype(np.float32)
    return noisy


def _picture(*paths: Path) -> Planes:
    """Read both sources, enlarged if a window that moves would not fit."""
    a, b = ((to_gray_plane(read_image(path)) / 255).astype(np.float32) for path in paths)
    factor = max(1.0, WIDTH * 1.25 / a.shape[1], HEIGHT / a.shape[0])
    size = (round(a.shape[1] * factor), round(a.shape[0] * factor))
    a, b = (cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in (a, b))
    return a, b


def _psnrs(wanted: list[Float32Array], got: list[Float32Array]) -> list[float]:
    """PSNR of every frame but the first, dB."""
    errors = (float(np.mean((x - y) ** 2, dtype=np.float64)) for x, y in zip(wanted[1:], got[1:], strict=True))
    return [-10 * math.log10(max(error, 1e-12)) for error in errors]


def _mean_flicker(clip: list[Planes], fused: list[Float32Array]) -> float:
    moments = [(255.0 * a, 255.0 * b, 255.0 * f) for (a, b), f in zip(clip, fused, strict=True)]
    return float(np.mean([flicker(before, after) for before, after in itertools.pairwise(moments)]))


if __name__ == "__main__":
    raise SystemExit(main())
