"""The fusion network as a schedule of kernel launches, 25 for a frame.

    planes -> stem -> 2 x encoder block (both sources in one launch) -> fusion module -> 2 x decoder block -> head -> stretch

A block is four launches: statistics, mixing weights, apply, feed-forward. Every value has its own buffer here; buffers that are
never in use at the same time share memory (``refusion_edge.cuda.program.lay_out``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Argument, Buffer, Kernel, Launch, Parameter, Schedule, Tile, with_lifetimes
from refusion_edge.kernels.gpu import (
    attention_apply,
    attention_statistics,
    fast_convolutions,
    fast_statistics,
    feed_forward,
    fusion_gates,
    head,
    mixing_weights,
    stem,
    stretch,
)
from refusion_edge.kernels.gpu.attention_statistics import partial_size
from refusion_edge.kernels.gpu.source import FEATURES, Source
from refusion_edge.network.parameters import DIM, NUM_BLOCKS

PLANES, FUSED, LEVELS = "planes", "fused", "levels"
"""Names of the input, (2, H, W) float32, and of the outputs, (H, W) float32 before any stretch and (H, W) uint8 after."""

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        stem.SOURCE,
        attention_statistics.SOURCE,
        mixing_weights.SOURCE,
        attention_apply.SOURCE,
        feed_forward.SOURCE,
        fusion_gates.SOURCE,
        head.NARROW,
        head.TO_PLANE,
        stretch.SOURCE,
        fast_statistics.SOURCE,
        fast_convolutions.SOURCE,
    )
}
"""Every kernel source by name."""

_BOTH = 2 * DIM

# Source, constants, grid, streams; by the name of the kernel.
_KERNELS: dict[str, tuple[str, dict[str, int], int]] = {
    "stem": ("stem", {"C": DIM}, 2),
    "encoder_statistics": ("attention_statistics", {"C": DIM, "CROSSED": 0}, 2),
    "encoder_mixing": ("mixing_weights", {"C": DIM, "CHUNK": 32}, 2),
    "encoder_apply": ("attention_apply", {"C": DIM, "JOINED": 0}, 2),
    "encoder_feed_forward": ("feed_forward", {"C": DIM, "PARTS": 1}, 2),
    "fusion_statistics": ("attention_statistics", {"C": DIM, "CROSSED": 1}, 2),
    "fusion_apply": ("attention_apply", {"C": DIM, "JOINED": 1}, 2),
    "fusion_gate_0": ("fusion_gate", {"C": DIM, "SOURCE": 0, "PARTS": 2}, 1),
    "fusion_gate_1": ("fusion_gate", {"C": DIM, "SOURCE": 1, "PARTS": 2}, 1),
    "decoder_statistics": ("attention_statistics", {"C": _BOTH, "CROSSED": 0}, 1),
    "decoder_mixing": ("mixing_weights", {"C": _BOTH, "CHUNK": 32}, 1),
    "decoder_apply": ("attention_apply", {"C": _BOTH, "JOINED": 0}, 1),
    "decoder_feed_forward": ("feed_forward", {"C": _BOTH, "PARTS": 2}, 1),
    "narrow": ("narrow", {"C": DIM}, 1),
    "to_plane": ("to_plane", {"C": DIM}, 1),
    "stretch": ("stretch", {}, 1),
}

# Kernels whose sums fill the registers in strips of 32 columns or more. With 16 columns, the warps share the outputs; each of
# them reads the whole row.
_NARROW = ("decoder_statistics", "decoder_feed_forward", "fusion_gate_0", "fusion_gate_1")
# Kernels with so few sums that a warp has registers for those of 32 columns, and then reads every tap half as often.
_WIDE = ("encoder_apply", "fusion_apply", "narrow", "to_plane")
# One program adds up all strips, so that only its own warps can share the work.
_MIXING = ("encoder_mixing", "decoder_mixing")


def tiles(architecture: int) -> dict[str, Tile]:
    """Choose the tile of every kernel for an architecture.

    Chosen by the compiled resources and instruction counts of the kernels; timings on a device are still missing.

    Args:
        architecture: 10 times the compute capability.
    """
    # A strip repeats the products of one row. Devices with few multiprocessors are filled by fewer and longer strips.
    rows = 32 if architecture in (87, 110) else 16
    # With 4 warps and 64 columns, Triton takes wgmma or the tensor memory, and waits for each of the small products.
    usual = Tile(32, rows, 2) if 90 <= architecture < 120 else Tile(64, rows, 4)
    chosen = dict.fromkeys(_KERNELS, usual)
    chosen |= dict.fromkeys(_NARROW, Tile(16, rows, 2)) | dict.fromkeys(_WIDE, Tile(64, rows, 2))
    chosen["decoder_feed_forward"] = Tile(16, rows, 4)
    if architecture >= 90:
        # With 2 warps, it spills a few registers there. Longer strips leave fewer of them to add up.
        chosen["decoder_statistics"] = Tile(16, 32, 4)
    return chosen | dict.fromkeys(_MIXING, Tile(64, rows, 16))


def make_schedule(features: str = "float16") -> Schedule:
    """List the launches of one frame.

    Args:
        features: Dtype of the features; a program for a device uses float16, tests use others.
    """
    # Everything but the features is at least single precision; a float64 schedule is float64 throughout.
    wide = "float64" if features == "float64" else "float32"
    kernels = {
        name: Kernel(
            name,
            source,
            tuple(typed(parameter, features, wide) for parameter in SOURCES[source].parameters),
            constants,
            "streams" if source == "mixing_weights" else "strips",
            streams,
        )
        for name, (source, constants, streams) in _KERNELS.items()
    }
    buffers = [Buffer(PLANES, wide, "input", per_pixel=2)]
    launches: list[Launch] = []

    def launch(kernel: str, **given: str) -> None:
        names = {"height": "height", "width": "width", **given}
        parameters = kernels[kernel].parameters
        launches.append(
            Launch(kernel, tuple(_argument(parameter, names[parameter.name.removesuffix("_ptr")]) for parameter in parameters))
        )

    def make(name: str, per_pixel: int) -> str:
        buffers.append(Buffer(name, features, "scratch", per_pixel=per_pixel))
        return name

    def attend(x: str, y: str, kind: str, name: str, channels: int) -> None:
        streams = kernels[f"{kind}_apply"].streams
        strips, taps = f"{name}.strips", f"{name}.taps"
        size = streams * partial_size(channels)
        buffers.append(Buffer(strips, wide, "scratch", per_strip=size, strips_of=f"{kind}_statistics"))
        buffers.append(Buffer(taps, features, "scratch", fixed=streams * 9 * channels * channels))
        # The fusion module has no layer norm; its kernels do not read these two.
        norm = {part: f"weights:{'encoder.0' if kind == 'fusion' else name}.norm1.{part}" for part in ("gain", "bias")}
        launch(f"{kind}_statistics", x=x, query=f"weights:{name}.query", key=f"weights:{name}.key", partial=strips, **norm)
        launch(
            "decoder_mixing" if channels == _BOTH else "encoder_mixing",
            partial=strips,
            **{part: f"weights:{name}.{part}" for part in ("temperature", "value", "project")},
            taps=taps,
            strips=f"{kind}_statistics",
        )
        launch(f"{kind}_apply", x=x, taps=taps, y=y, **norm)

    def block(x: str, kind: str, name: str, channels: int) -> str:
        attended, transformed = make(f"{name}.attended", _BOTH), make(f"{name}.transformed", _BOTH)
        attend(x, attended, kind, name, channels)
        norm = {part: f"weights:{name}.norm2.{part}" for part in ("gain", "bias")}
        taps = {part: f"weights:{name}.{part}" for part in ("gate", "update")}
        launch(f"{kind}_feed_forward", x=attended, y=transformed, project=f"weights:{name}.output", **norm, **taps)
        return transformed

    x = make("stem", _BOTH)
    launch("stem", planes=PLANES, weights="weights:stem.weights", features=x)
    for index in range(NUM_BLOCKS):
        x = block(x, "encoder", f"encoder.{index}", DIM)
    joined, gated = make("fusion.joined", _BOTH), make("fusion.gated", _BOTH)
    attend(x, joined, "fusion", "fusion", DIM)
    for source, base in enumerate((joined, gated)):
        taps = {part: f"weights:fusion.{source}.{part}" for part in ("own", "other", "update")}
        launch(f"fusion_gate_{source}", x=joined, base=base, y=gated, project=f"weights:fusion.{source}.output", **taps)
    x = gated
    for index in range(NUM_BLOCKS):
        x = block(x, "decoder", f"decoder.{index}", _BOTH)
    z = make("head", DIM)
    buffers.append(Buffer("extremes", wide, "scratch", per_strip=2, strips_of="to_plane"))
    buffers.append(Buffer(FUSED, wide, "output", per_pixel=1))
    buffers.append(Buffer(LEVELS, "uint8", "output", per_pixel=1))
    launch("narrow", x=x, taps="weights:head.narrow", z=z)
    launch("to_plane", z=z, weights="weights:head.plane", fused=FUSED, extremes="extremes")
    launch("stretch", fused=FUSED, extremes="extremes", levels=LEVELS, strips="to_plane")
    return Schedule(kernels, with_lifetimes(buffers, tuple(launches)), tuple(launches))


def typed(parameter: Parameter, features: str, wide: str) -> Parameter:
    """A parameter with the dtypes of a schedule.

    Args:
        parameter: As its source declares it.
        features: Dtype of the features.
        wide: Dtype of everything that is at least single precision.
    """
    types: Mapping[str, str] = {FEATURES: f"{features}*", "float32*": f"{wide}*"}
    return Parameter(parameter.name, types.get(parameter.type, parameter.type), parameter.written)


def _argument(parameter: Parameter, name: str) -> Argument:
    if parameter.type == "int32":
        return Argument("size" if parameter.name in ("height", "width") else "strips", name)
    if name.startswith("weights:"):
        return Argument("weights", name.removeprefix("weights:"))
    return Argument("buffer", name)


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
