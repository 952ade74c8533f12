"""The network ``fast`` as a schedule of three launches: statistics, convolutions, and the stretch to 8 bits."""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Argument, Buffer, Kernel, Launch, Parameter, Schedule, Tile, with_lifetimes
from refusion_edge.errors import UsageError
from refusion_edge.kernels.gpu.fast_convolutions import HIDDEN
from refusion_edge.kernels.gpu.fast_statistics import PARTIAL_SIZE
from refusion_edge.kernels.gpu.folding import FoldedWeights
from refusion_edge.kernels.gpu.schedule import FUSED, LEVELS, PLANES, SOURCES, typed
from refusion_edge.machine import ARCHITECTURES
from refusion_edge.network.fast import STATISTICS, FastLayout, layout_of

STATISTICS_KERNEL, CONVOLUTIONS, STRETCH = "fast_statistics", "fast_convolutions", "stretch"

# What a product of matrices has to have at least in each direction.
_LEAST = 16
# Columns of cells in the window of a program.
_WINDOW = 64
_MOST_LAYERS_OF_HALF_A_WINDOW = 8
# With more, the rows that a program keeps do not fit the registers.
_MOST_CHANNELS = 32
# Rows of cells of a program, by the unshuffle factor: the more, the fewer are computed twice, and the fewer programs there are.
# Two rows for each of the few multiprocessors of a Jetson, half as many where there are a hundred of them.
_ROWS = {2: 24, 4: 12}


def check_layout(layout: FastLayout) -> None:
    """Check that there are kernels for a layout.

    Raises:
        UsageError: There are none.
    """
    if layout.channels > _MOST_CHANNELS:
        raise UsageError(
            f"the back end fused has kernels for the network fast with up to {_MOST_CHANNELS} channels, and these weights have "
            f"{layout.channels}",
            "build for tensorrt or tensorrt-rtx",
            expected=_MOST_CHANNELS,
            got=layout.channels,
        )


def fast_tiles(layout: FastLayout, architecture: int) -> dict[str, Tile]:
    """Choose the tile of every kernel for an architecture.

    Chosen by the compiled resources and instruction counts of the kernels; timings on a device are still missing.

    Args:
        layout: Sizes of the network.
        architecture: 10 times the compute capability.
    """
    rows = _ROWS[layout.factor] if architecture in (87, 110) else _ROWS[layout.factor] // 2
    window, warps = _WINDOW, 4
    if 100 <= architecture < 120:
        # With 4 warps and 64 columns Triton 3.9 takes the tensor-memory path, which costs twice the instructions. With 2 warps,
        # rows of 64 columns spill; that is the lesser evil where many layers leave little of 32.
        window, warps = _WINDOW if layout.convolutions > _MOST_LAYERS_OF_HALF_A_WINDOW else _WINDOW // 2, 2
    columns = (window - 2 * (layout.convolutions - 1)) * layout.factor
    return {
        STATISTICS_KERNEL: Tile(128, 64, 4),
        CONVOLUTIONS: Tile(columns, rows * layout.factor, warps),
        STRETCH: Tile(64, 16, 4),
    }


def make_fast_schedule(layout: FastLayout, features: str = "float16") -> Schedule:
    """List the launches of one frame.

    Args:
        layout: Sizes of the network.
        features: Dtype of the features; a program for a device uses float16, tests use others.
    """
    wide = "float64" if features == "float64" else "float32"
    channels, inputs = _padded(layout.channels), _padded(layout.planes)
    constants = {
        "C": channels, "INPUTS": inputs, "OUTPUTS": inputs, "LAYERS": layout.convolutions, "FACTOR": layout.factor,
    }  # fmt: skip
    kernels = {
        name: Kernel(
            name,
            name,
            tuple(typed(parameter, features, wide) for parameter in SOURCES[name].parameters),
            constants if name == CONVOLUTIONS else {},
            "strips",
            1,
        )
        for name in (STATISTICS_KERNEL, CONVOLUTIONS, STRETCH)
    }
    scratch = max(_scratch(layout, fast_tiles(layout, architecture)[CONVOLUTIONS]) for architecture in ARCHITECTURES)
    buffers = (
        Buffer(PLANES, wide, "input", per_pixel=2),
        Buffer("partial", wide, "scratch", per_strip=PARTIAL_SIZE, strips_of=STATISTICS_KERNEL),
        Buffer("scratch", features, "scratch", per_strip=scratch, strips_of=CONVOLUTIONS),
        Buffer("extremes", wide, "scratch", per_strip=2, strips_of=CONVOLUTIONS),
        Buffer(FUSED, wide, "output", per_pixel=1),
        Buffer(LEVELS, "uint8", "output", per_pixel=1),
    )
    launches = tuple(
        Launch(name, tuple(_argument(name, parameter) for parameter in kernels[name].parameters)) for name in kernels
    )
    return Schedule(kernels, with_lifetimes(buffers, launches), launches)


def fold_fast(state: State) -> FoldedWeights:
    """Lay the parameters out as the kernels take them, see ``refusion_edge.kernels.gpu.fast_convolutions``.

    Args:
        state: All parameters.
    """
    layout = layout_of({name: array.shape for name, array in state.items()})
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    channels, planes = _padded(layout.channels), _padded(layout.planes)
    widths = [planes, *[channels] * (layout.convolutions - 1), planes]
    # Of the outputs, s in the even columns and r in the odd ones.
    turns = np.arange(layout.planes).reshape(2, -1).T.ravel()
    taps, biases = [], []
    for index in range(layout.convolutions):
        weight, bias = wide[f"layers.{index}.weight"], wide[f"layers.{index}.bias"]
        if index + 1 == layout.convolutions:
            weight, bias = weight[turns], bias[turns]
        outputs, inputs = weight.shape[:2]
        layer = np.zeros((9, *widths[index : index + 2]))
        layer[:, :inputs, :outputs] = weight.reshape(outputs, inputs, 9).transpose(2, 1, 0)
        taps.append(layer.ravel())
        biases.append(np.pad(bias, (0, widths[index + 1] - outputs)))
    first = np.zeros((STATISTICS + 1, HIDDEN))
    hidden = len(wide["statistics.0.bias"])
    first[:-1, :hidden], first[-1, :hidden] = wide["statistics.0.weight"].T, wide["statistics.0.bias"]
    second = np.zeros((HIDDEN + 1, 2, channels))
    second[:hidden, :, : layout.channels] = wide["statistics.1.weight"].reshape(2, layout.channels, hidden).transpose(2, 0, 1)
    second[-1, :, : layout.channels] = wide["statistics.1.bias"].reshape(2, layout.channels)
    return FoldedWeights({"taps": np.concatenate(taps)}, {"bias": np.concatenate(biases), "first": first, "second": second})


def _padded(channels: int) -> int:
    """The least power of two that has room for some channels, and that matrices may have."""
    return max(_LEAST, 1 << (channels - 1).bit_length())


def _scratch(layout: FastLayout, tile: Tile) -> int:
    """Numbers in the two areas of a program."""
    around = 2 * (layout.convolutions - 1)
    window, depth = tile.columns // layout.factor + around, tile.rows // layout.factor + around
    return 2 * depth * window * _padded(layout.channels)


def _argument(kernel: str, parameter: Parameter) -> Argument:
    name = parameter.name.removesuffix("_ptr")
    if parameter.type != "int32":
        return Argument("weights" if name in ("taps", "bias", "first", "second") else "buffer", name)
    if name != "strips":
        return Argument("size", name)
    return Argument("strips", STATISTICS_KERNEL if kernel == CONVOLUTIONS else CONVOLUTIONS)
