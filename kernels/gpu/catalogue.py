"""Every kernel source by name: its parameters, its Triton function, and the same thing computed by its reference.

``on_host`` runs a whole launch with the plain reference on arrays that have the layout of the kernel. What a strip would
have contributed is not kept apart: the first strip gets the sums of the picture, the others zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Parameter
from refusion_edge.kernels.gpu.attention_apply import attention_apply, attention_apply_kernel
from refusion_edge.kernels.gpu.attention_statistics import attention_statistics, attention_statistics_kernel, partial_size
from refusion_edge.kernels.gpu.feed_forward import feed_forward, feed_forward_kernel
from refusion_edge.kernels.gpu.fusion_gates import fusion_gate, fusion_gate_kernel
from refusion_edge.kernels.gpu.head import narrow, narrow_kernel, to_plane, to_plane_kernel
from refusion_edge.kernels.gpu.mixing_weights import mixing_weights, mixing_weights_kernel
from refusion_edge.kernels.gpu.stem import stem, stem_kernel
from refusion_edge.kernels.gpu.stretch import stretch, stretch_kernel

FEATURES = "features*"
"""Type of a parameter whose dtype is that of the features: float16 in programs, any floating dtype in tests."""

_SIZE = (Parameter("height", "int32"), Parameter("width", "int32"))


@dataclass(frozen=True, slots=True)
class Source:
    """One kernel source.

    Attributes:
        function: The Triton function; a plain function where Triton is not installed.
        parameters: In order; types may be ``FEATURES``.
        on_host: Runs one launch: takes the arguments (flat arrays and integers) and constants by name, and the number
            of streams, and writes into the arrays.
    """

    function: Any
    parameters: tuple[Parameter, ...]
    on_host: Callable[[Mapping[str, Any], int], None]


def _norm(given: Mapping[str, Any], stream: int) -> tuple[Array, Array]:
    channels = given["C"]
    return given["gain_ptr"].reshape(-1, channels)[stream], given["bias_ptr"].reshape(-1, channels)[stream]


def _features(given: Mapping[str, Any], name: str, *shape: int) -> Array:
    array: Array = given[name].reshape(-1, given["height"], given["width"], *shape)
    return array


def _stem(given: Mapping[str, Any], streams: int) -> None:
    channels = given["C"]
    planes, features = _features(given, "planes_ptr"), _features(given, "features_ptr", channels)
    weights = given["weights_ptr"].reshape(streams, 9, channels)
    for stream in range(streams):
        features[stream] = stem(planes[stream], weights[stream])


def _attention_statistics(given: Mapping[str, Any], streams: int) -> None:
    channels = given["C"]
    x = _features(given, "x_ptr", channels)
    query, key = (given[name].reshape(streams, 9, channels, channels) for name in ("query_ptr", "key_ptr"))
    partial = given["partial_ptr"].reshape(streams, -1, partial_size(channels))
    partial[:] = 0
    for stream in range(streams):
        asking = x[1 - stream if given["CROSSED"] else stream]
        norm = None if given["CROSSED"] else _norm(given, stream)
        partial[stream, 0] = attention_statistics(asking, x[stream], query[stream], key[stream], norm).ravel()


def _mixing_weights(given: Mapping[str, Any], streams: int) -> None:
    channels = given["C"]
    partial = given["partial_ptr"].reshape(streams, given["strips"], -1, 8)
    temperature = given["temperature_ptr"].reshape(streams, 8)
    value, taps = (given[name].reshape(streams, 9, channels, channels) for name in ("value_ptr", "taps_ptr"))
    project = given["project_ptr"].reshape(streams, channels, channels)
    for stream in range(streams):
        taps[stream] = mixing_weights(partial[stream].sum(axis=0), temperature[stream], value[stream], project[stream])


def _attention_apply(given: Mapping[str, Any], streams: int) -> None:
    channels, joined = given["C"], given["JOINED"]
    x = _features(given, "x_ptr", channels)
    taps = given["taps_ptr"].reshape(streams, 9, channels, channels)
    y = _features(given, "y_ptr", 2, channels) if joined else _features(given, "y_ptr", channels)
    for stream in range(streams):
        applied = attention_apply(x[stream], taps[stream], None if joined else _norm(given, stream))
        if joined:
            y[0, :, :, stream] = applied
        else:
            y[stream] = applied


def _feed_forward(given: Mapping[str, Any], streams: int) -> None:
    channels = given["C"]
    x, y = (_features(given, name, channels) for name in ("x_ptr", "y_ptr"))
    gate, update = (given[name].reshape(streams, 9, channels, 2 * channels) for name in ("gate_ptr", "update_ptr"))
    project = given["project_ptr"].reshape(streams, 2 * channels, channels)
    for stream in range(streams):
        operands = gate[stream], update[stream], project[stream]
        y[stream] = feed_forward(x[stream], *_norm(given, stream), *operands, given["PARTS"])


def _fusion_gate(given: Mapping[str, Any], _streams: int) -> None:
    channels = given["C"]
    x, base, y = (_features(given, name, 2 * channels)[0] for name in ("x_ptr", "base_ptr", "y_ptr"))
    own, other, update = (given[name].reshape(9, channels, 4 * channels) for name in ("own_ptr", "other_ptr", "update_ptr"))
    project = given["project_ptr"].reshape(4 * channels, 2 * channels)
    y[:] = fusion_gate(x, base, own, other, update, project, given["SOURCE"], given["PARTS"])


def _narrow(given: Mapping[str, Any], _streams: int) -> None:
    channels = given["C"]
    taps = given["taps_ptr"].reshape(9, 2 * channels, channels)
    _features(given, "z_ptr", channels)[0] = narrow(_features(given, "x_ptr", 2 * channels)[0], taps)


def _to_plane(given: Mapping[str, Any], _streams: int) -> None:
    fused = _features(given, "fused_ptr")[0]
    fused[:] = to_plane(_features(given, "z_ptr", given["C"])[0], given["weights_ptr"].reshape(9, given["C"]))
    given["extremes_ptr"].reshape(-1, 2)[:] = fused.min(), fused.max()


def _stretch(given: Mapping[str, Any], _streams: int) -> None:
    extremes = given["extremes_ptr"].reshape(given["strips"], 2)
    _features(given, "levels_ptr")[0] = stretch(_features(given, "fused_ptr")[0], extremes)


def _pointers(*names: str, type: str = FEATURES, written: bool = False) -> tuple[Parameter, ...]:
    return tuple(Parameter(f"{name}_ptr", type, written) for name in names)


def _singles(*names: str, written: bool = False) -> tuple[Parameter, ...]:
    return _pointers(*names, type="float32*", written=written)


SOURCES: dict[str, Source] = {
    "stem": Source(
        stem_kernel,
        (*_singles("planes", "weights"), *_pointers("features", written=True), *_SIZE),
        _stem,
    ),
    "attention_statistics": Source(
        attention_statistics_kernel,
        (
            *_pointers("x"),
            *_singles("gain", "bias"),
            *_pointers("query", "key"),
            *_singles("partial", written=True),
            *_SIZE,
        ),
        _attention_statistics,
    ),
    "mixing_weights": Source(
        mixing_weights_kernel,
        (
            *_singles("partial", "temperature", "value", "project"),
            *_pointers("taps", written=True),
            Parameter("strips", "int32"),
        ),
        _mixing_weights,
    ),
    "attention_apply": Source(
        attention_apply_kernel,
        (*_pointers("x"), *_singles("gain", "bias"), *_pointers("taps"), *_pointers("y", written=True), *_SIZE),
        _attention_apply,
    ),
    "feed_forward": Source(
        feed_forward_kernel,
        (
            *_pointers("x"),
            *_singles("gain", "bias"),
            *_pointers("gate", "update", "project"),
            *_pointers("y", written=True),
            *_SIZE,
        ),
        _feed_forward,
    ),
    "fusion_gate": Source(
        fusion_gate_kernel,
        (*_pointers("x", "base", "own", "other", "update", "project"), *_pointers("y", written=True), *_SIZE),
        _fusion_gate,
    ),
    "narrow": Source(narrow_kernel, (*_pointers("x", "taps"), *_pointers("z", written=True), *_SIZE), _narrow),
    "to_plane": Source(
        to_plane_kernel,
        (*_pointers("z"), *_singles("weights"), *_singles("fused", "extremes", written=True), *_SIZE),
        _to_plane,
    ),
    "stretch": Source(
        stretch_kernel,
        (
            *_singles("fused", "extremes"),
            *_pointers("levels", type="uint8*", written=True),
            *_SIZE,
            Parameter("strips", "int32"),
        ),
        _stretch,
    ),
}


def run_on_host(source: str, given: Mapping[str, Any], streams: int) -> None:
    """Run one launch with the plain reference.

    Args:
        source: Name of the source.
        given: Arguments and constants by name; pointers are flat arrays that end where the buffer ends.
        streams: Number of streams.
    """
    # What leaves the range of half precision becomes an infinity, as it does on a device.
    with np.errstate(over="ignore", invalid="ignore"):
        SOURCES[source].on_host(given, streams)
