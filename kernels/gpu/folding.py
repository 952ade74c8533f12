"""Folding the network's weights into the operands of the GPU kernels. NumPy only.

A 1x1 convolution W followed by a depthwise 3x3 convolution d is one dense 3x3 convolution, exactly, because neither has
a bias and zero padding of the one is zero padding of the other:

    taps[t, c, o] = W[o, c] d[o, t]

The projection behind channel attention folds into per-image taps later (``mixing_weights``). 278 k multiply-adds per
pixel instead of 60 k, but they are matrix products, and no intermediate leaves the registers.

Blocks of the two encoders are stacked, source a before source b, because one launch serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, State
from refusion_edge.kernels.gpu.attention_statistics import head_columns
from refusion_edge.network.forms import fold_pair
from refusion_edge.network.parameters import DIM, NUM_BLOCKS, NUM_HEADS

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FoldedWeights:
    """Weights as the kernels take them.

    Attributes:
        taps: Operands of matrix products on features, name to float64 array; inputs before outputs. They are rounded to
            the dtype of the features.
        vectors: What stays in single precision: norms, temperatures, what ``mixing_weights`` folds, first and last taps.
    """

    taps: Mapping[str, Float64Array]
    vectors: Mapping[str, Float64Array]

    def rounded(self, features: np.dtype[np.floating]) -> dict[str, Array]:
        """The arrays in the dtypes that the kernels load them in, contiguous.

        Args:
            features: Dtype of the features; float64 keeps everything in float64.
        """
        wide = np.dtype(np.float64) if features == np.float64 else np.dtype(np.float32)
        taps = {name: np.ascontiguousarray(array.astype(features)) for name, array in self.taps.items()}
        return taps | {name: np.ascontiguousarray(array.astype(wide)) for name, array in self.vectors.items()}


def fold(state: State) -> FoldedWeights:
    """Fold the 86 parameters.

    Args:
        state: Parameters by name, as ``refusion_edge.network.parameters`` lists them.
    """
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    taps: dict[str, Float64Array] = {"head.narrow": _dense(wide["project_out_0.weight"])}
    vectors: dict[str, Float64Array] = {
        "stem.weights": np.stack([_dense(wide[f"project_in_{source}.weight"])[:, 0] for source in (1, 2)]),
        "head.plane": _dense(wide["project_out_1.weight"])[..., 0],
    }
    for index in range(NUM_BLOCKS):
        _fold_blocks(wide, [f"encoder1.{index}", f"encoder2.{index}"], f"encoder.{index}", taps, vectors)
        _fold_blocks(wide, [f"decoder.{index}"], f"decoder.{index}", taps, vectors)
    _fold_fusion(wide, taps, vectors)
    return FoldedWeights(taps, vectors)


def folded_taps(pointwise: Array, depthwise: Array) -> Float64Array:
    """Fold a 1x1 and a depthwise 3x3 convolution into one.

    Args:
        pointwise: (N, C, 1, 1), applied first.
        depthwise: (N, 1, 3, 3).

    Returns:
        (9, C, N), taps in the order of rows.
    """
    return _dense(fold_pair(pointwise, depthwise))


def _dense(weights: Array) -> Float64Array:
    outputs, inputs = weights.shape[:2]
    taps: Float64Array = weights.reshape(outputs, inputs, 9).transpose(2, 1, 0).astype(np.float64)
    return taps


def _fold_blocks(
    wide: Mapping[str, Float64Array],
    prefixes: list[str],
    name: str,
    taps: dict[str, Float64Array],
    vectors: dict[str, Float64Array],
) -> None:
    def stacked(parameter: str) -> Float64Array:
        return np.stack([wide[f"{prefix}.{parameter}"] for prefix in prefixes])

    for norm in ("norm1", "norm2"):
        vectors[f"{name}.{norm}.gain"] = stacked(f"{norm}.body.weight")
        vectors[f"{name}.{norm}.bias"] = stacked(f"{norm}.body.bias")
    attention = [
        list(_thirds(folded_taps(wide[f"{prefix}.attn.qkv.weight"], wide[f"{prefix}.attn.qkv_dwconv.weight"])))
        for prefix in prefixes
    ]
    columns = head_columns(attention[0][0].shape[2])
    taps[f"{name}.query"] = np.stack([query[..., columns] for query, _, _ in attention])
    taps[f"{name}.key"] = np.stack([key[..., columns] for _, key, _ in attention])
    vectors[f"{name}.value"] = np.stack([value for _, _, value in attention])
    vectors[f"{name}.project"] = stacked("attn.project_out.weight")[..., 0, 0].transpose(0, 2, 1)
    vectors[f"{name}.temperature"] = stacked("attn.temperature").reshape(-1, NUM_HEADS)
    feed_forward = [
        np.split(folded_taps(wide[f"{prefix}.ffn.project_in.weight"], wide[f"{prefix}.ffn.dwconv.weight"]), 2, axis=2)
        for prefix in prefixes
    ]
    taps[f"{name}.gate"] = np.stack([gate for gate, _ in feed_forward])
    taps[f"{name}.update"] = np.stack([update for _, update in feed_forward])
    taps[f"{name}.output"] = stacked("ffn.project_out.weight")[..., 0, 0].transpose(0, 2, 1)


def _fold_fusion(wide: Mapping[str, Array], taps: dict[str, Float64Array], vectors: dict[str, Float64Array]) -> None:
    (query1, key1, value1), (query2, key2, value2) = (
        _thirds(folded_taps(wide[f"FM.qkv{source}.weight"], wide[f"FM.qkv{source}_dwconv.weight"])) for source in (1, 2)
    )
    # Crossed: the stream of one source is asked with the queries of the other.
    taps["fusion.query"] = np.stack([query2, query1])
    taps["fusion.key"] = np.stack([key1, key2])
    vectors["fusion.value"] = np.stack([value1, value2])
    vectors["fusion.project"] = np.stack([wide[f"FM.project_mid{source}.weight"][:, :, 0, 0].T for source in (1, 2)])
    vectors["fusion.temperature"] = np.stack([wide[f"FM.temperature{source}"].reshape(NUM_HEADS) for source in (1, 2)])
    gates = np.split(folded_taps(wide["FM.project_E.weight"], wide["FM.project_E_d.weight"]), 2, axis=2)
    for source, gate in enumerate(gates):
        halves = gate[:, :DIM], gate[:, DIM:]
        taps[f"fusion.{source}.own"] = halves[source]
        taps[f"fusion.{source}.other"] = halves[1 - source]
        name = f"FM.project_E{source + 1}"
        taps[f"fusion.{source}.update"] = folded_taps(wide[f"{name}.weight"], wide[f"{name}_d.weight"])
        taps[f"fusion.{source}.output"] = wide[f"FM.project_out{source + 1}.weight"][:, :, 0, 0].T


def _thirds(taps: Float64Array) -> Iterator[Float64Array]:
    yield from np.split(taps, 3, axis=2)
