"""What reduced precision costs the network ``fast`` in accuracy: a model of each way to compute it, on real pairs.

python -m benchmarks.fast_precisions --data DIR [--tasks TASK ...] [--forms NAME ...] [--limit N]

DIR holds ``TASK/train/SOURCE``; the pairs are those that training holds back, the weights those of the package. Every way of
computing is imitated number by number: each result is rounded as an instruction would round it, a multiply-add only once.
Statistics, the first layer's adaptation and the composition are exact everywhere. Each row gives the worst PSNR and SSIM and
the largest error, in gray levels of 255, of all pairs of a task against the definition in float64. The last column says
whether all are within the limits of that precision (``refusion_edge.accuracy.gate``).

``multiply-adds`` are the vector instructions per pixel on NEON that the products alone need: those of the layout, divided by
how many one instruction does. Winograd's F(4, 3) halves the products of plain convolutions; it needs numbers between the
pixels' levels, so INT8 computes plain convolutions. Its weights have a scale for each output, its features a scale and a
zero for each layer; their ranges are those of every fourth pair that training does use. The inputs of the first layer are
images, whose levels INT8 would halve: it stays in fp32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.weights import held_pairs, split_entries
from refusion_edge.accuracy.gate import LIMITS, compare, worst
from refusion_edge.arrays import Float32Array, State
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network import fast
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.forms import Precision
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS, Task, find_task
from refusion_edge.train.collection import read_planes

_ROOT = 0.5**0.5
_LANES = 4

Planes: TypeAlias = tuple[Float32Array, Float32Array]
"""Both sources, (H, W), [0, 1]."""
Round: TypeAlias = Callable[[Tensor], Tensor]
Convolve: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Index of the layer, features (I, h, w), weights (O, I, 3, 3) and biases (O,) to (O, h, w)."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to compute the convolutions.

    Attributes:
        words: What it is.
        precision: Whose limits it has to keep.
        products: Multiply-adds that one NEON instruction does.
        winograd: Whether it computes Winograd's form, with half the products.
        features: Rounds features and the steps in which their rows are mixed.
        operands: Rounds what is multiplied: mixes of rows or, without Winograd's form, features; and weights.
        sums: Rounds sums of products, and what is made of them.
    """

    words: str
    precision: Precision
    products: int
    winograd: bool
    features: Round
    operands: Round
    sums: Round


def _exact(x: Tensor) -> Tensor:
    return x


def _half(x: Tensor) -> Tensor:
    return x.half().float()


def _brain(x: Tensor) -> Tensor:
    return x.bfloat16().float()


FORMS = {
    "fp32": Form("fp32", "fp32", _LANES, True, _exact, _exact, _exact),
    "fp16": Form("fp16 throughout (FMLA)", "fp16", 2 * _LANES, True, _half, _half, _half),
    "fp16-long": Form("fp16, sums in fp32 (FMLAL)", "fp16", _LANES, True, _half, _half, _exact),
    "bf16": Form("bf16 operands, sums in fp32 (BFDOT)", "bf16", 2 * _LANES, True, _exact, _brain, _exact),
    "bf16-plain": Form("bf16 operands, plain convolutions", "bf16", 2 * _LANES, False, _exact, _brain, _exact),
    "int8": Form("INT8 operands, plain convolutions (SDOT)", "int8", 4 * _LANES, False, _exact, _exact, _exact),
}


def main() -> int:
    """Measure and print a table per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK/train/SOURCE")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="default: all")
    parser.add_argument("--limit", type=int, metavar="N", help="first N pairs of each task only")
    options = parser.parse_args()
    for task in map(find_task, options.tasks):
        state = read_checkpoint(weights_path(task.name, "fast")).state
        pairs = held_planes(task, options.data, options.limit)
        layout = fast.layout_of({name: array.shape for name, array in state.items()})
        print(f"\n{task.name}, {len(pairs)} held-back pairs\n")
        print("| form | multiply-adds | PSNR | SSIM | levels | within the limits |\n| --- | ---: | ---: | ---: | ---: | --- |")
        exact = [fast.reference(state, a, b).astype(np.float32) for a, b in pairs]
        for name in options.forms:
            form = FORMS[name]
            convolve = int8_convolve(state, used_planes(task, options.data)) if name == "int8" else convolve_in(form)
            found = worst(compare(fuse(state, a, b, convolve), expected) for (a, b), expected in zip(pairs, exact, strict=True))
            count = layout.multiplications * (0.5 if form.winograd else 1) / form.products
            verdict = "yes" if LIMITS[form.precision].hold(found) else "no"
            figures = f"{found.psnr_db:.1f} dB | {found.ssim:.5f} | {found.max_error:.2f}"
            print(f"| {form.words} | {count:.0f} | {figures} | {verdict} |", flush=True)
    return 0


def fuse(state: State, a: Float32Array, b: Float32Array, convolve: Convolve) -> Float32Array:
    """Fuse two planes, (H, W), with another way to convolve."""
    layout = fast.layout_of({name: array.shape for name, array in state.items()})
    height, width = a.shape
    first = [torch.from_numpy(part.astype(np.float32)) for part in fast.folded(state, fast.statistics(a, b))]
    bottom, right = -height % layout.factor, -width % layout.factor
    sources = [F.pad(torch.from_numpy(plane)[None, None], (0, right, 0, bottom), mode="replicate") for plane in (a, b)]
    features = F.pixel_unshuffle(torch.cat(sources, dim=1), layout.factor)[0]
    for index in range(layout.convolutions):
        own = [torch.from_numpy(state[f"layers.{index}.{part}"]) for part in ("weight", "bias")]
        features = convolve(index, features, *(first if index == 0 else own))
        if index + 1 < layout.convolutions:
            features = torch.maximum(features, fast.SLOPE * features)
    s, r = F.pixel_shuffle(features[None], layout.factor)[0]
    x, y = (source[0, 0] for source in sources)
    fused: Float32Array = (torch.maximum(x, y) - s * (x - y).abs() + r).clamp(0, 1)[:height, :width].numpy()
    return fused


def convolve_in(form: Form) -> Convolve:
    """How a form convolves."""

    def convolve(_: int, features: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        return (_winograd if form.winograd else _plain)(form, features, weights, biases)

    return convolve


def _sum_of_products(form: Form, weights: Tensor, shifted: Sequence[Tensor]) -> Tensor:
    """Products of weights (O, taps, I) with features (I, ...), one for each tap, added up input by input."""
    outputs, _, inputs = weights.shape
    total = torch.zeros(outputs, *shifted[0].shape[1:])
    for i in range(inputs):
        for tap, x in enumerate(shifted):
            total.addcmul_(weights[:, tap, i, None, None], x[i][None])
            if form.sums is not _exact:
                total.copy_(form.sums(total))
    return total


def _plain(form: Form, features: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    height, width = features.shape[1:]
    padded = F.pad(form.operands(features), (1, 1, 1, 1))
    shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    total = _sum_of_products(form, form.operands(weights).flatten(2).transpose(1, 2), shifted)
    return form.sums(total + biases[:, None, None])


def _winograd(form: Form, features: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """F(4, 3) down the columns, step by step as ``kernels/cpu/csrc/convolution.hpp`` does it."""
    height, width = features.shape[1:]
    groups = -(-height // 4)
    r = form.features
    padded = F.pad(r(features), (1, 1, 1, 4 * groups - height + 1))
    x = [padded[:, i : i + 4 * groups : 4] for i in range(6)]
    even, odd = r(x[4] - 2 * x[2]), r(x[3] - 2 * x[1])
    even_2, odd_2 = r(x[4] - 0.5 * x[2]), r(x[3] - 0.5 * x[1])
    root, twice = (float(r(torch.tensor(value))) for value in (_ROOT, 2 * _ROOT))
    mixes = (
        r(r(x[0] + x[4]) - 2.5 * x[2]),
        r(even + root * odd),
        r(even - root * odd),
        r(even_2 + twice * odd_2),
        r(even_2 - twice * odd_2),
        r(r(x[1] + x[5]) - 2.5 * x[3]),
    )
    top, middle, bottom = weights.double().unbind(2)
    at = [(top + point * middle + point**2 * bottom) for point in (_ROOT, -_ROOT, 2 * _ROOT, -2 * _ROOT)]
    mixed = [top, at[0] / -1.5, at[1] / -1.5, at[2] / 6, at[3] / 6, bottom]
    p = []
    for mix, taps in zip(map(form.operands, mixes), mixed, strict=True):
        shifted = [mix[:, :, column : column + width] for column in range(3)]
        p.append(_sum_of_products(form, form.operands(taps.float()).transpose(1, 2), shifted))
    r = form.sums
    bias = r(biases[:, None, None])
    even, odd, even_2, odd_2 = r(p[1] + p[2]), r(p[1] - p[2]), r(p[3] + p[4]), r(p[3] - p[4])
    root, half_root = (float(r(torch.tensor(value))) for value in (_ROOT, 0.5 * _ROOT))
    rows = (
        r(r(r(p[0] + even) + even_2) + bias),
        r(root * r(odd + 2 * odd_2) + bias),
        r(0.5 * r(even + 4 * even_2) + bias),
        r(half_root * r(odd + 8 * odd_2) + r(p[5] + bias)),
    )
    return torch.stack(rows, dim=2).flatten(1, 2)[:, :height]


def int8_convolve(state: State, pairs: Sequence[Planes]) -> Convolve:
    """Plain convolutions of INT8 operands, of all layers but the first, whose features have the ranges of these pairs."""
    ranges: dict[int, tuple[float, float]] = {}

    def observe(index: int, features: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        low, high = ranges.get(index, (0.0, 0.0))
        ranges[index] = min(low, float(features.min())), max(high, float(features.max()))
        return F.conv2d(features[None], weights, biases, padding=1)[0]

    def convolve(index: int, features: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        if index > 0:
            low, high = ranges[index]
            step = (high - low) / 255
            zero = round(-low / step)
            features = ((features / step).round().clamp(-zero, 255 - zero)) * step
            scale = weights.abs().amax((1, 2, 3), keepdim=True) / 127
            weights = (weights / scale).round() * scale
        return F.conv2d(features[None], weights, biases, padding=1)[0]

    for a, b in pairs:
        fuse(state, a, b, observe)
    return convolve


def held_planes(task: Task, data: Path, limit: int | None) -> list[Planes]:
    """Luma planes of the pairs that training holds back."""
    return [_planes(pair, task) for pair in held_pairs(data / task.name / "train", task)[:limit]]


def used_planes(task: Task, data: Path) -> list[Planes]:
    """Luma planes of every fourth pair that training uses."""
    entries = [entry for entry in split_entries(data / task.name / "train", task)[0] if entry.b is not None]
    return [_planes(ImagePair(entry.name, *read_planes(entry)), task) for entry in entries[::4]]


def _planes(pair: ImagePair, task: Task) -> Planes:
    planes = to_planes(pair.a, pair.b, task)
    return planes.a[0, 0], planes.b[0, 0]


if __name__ == "__main__":
    sys.exit(main())
