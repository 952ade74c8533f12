"""Value ranges for INT8: inputs of the quantizable layers, measured on real pairs with ONNX Runtime. Imports no torch."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization.calibrate import HistogramCollector

from refusion_edge.arrays import Array
from refusion_edge.errors import GateError, InputError
from refusion_edge.images.luma import Planes, to_planes
from refusion_edge.images.pairs import ImagePair, fingerprint
from refusion_edge.network.graph import INPUT_A, INPUT_B
from refusion_edge.network.quantization import CalibrationTable, Method, layer_nodes
from refusion_edge.tasks import Task

# With fewer pairs, a single unusual image can decide a range; with more, the ranges no longer change.
MIN_PAIRS, MAX_PAIRS = 16, 32
# Larger images are cropped to their middle, because scaling would change the noise that the ranges must cover.
_LARGEST_HW = (288, 384)

_BINS = 1024
_LEVELS = 255
_PERCENTILE = 99.99
_ERRORS_ONLY = 3


def collect(
    model: onnx.ModelProto,
    pairs: Iterable[ImagePair],
    task: Task,
    method: Method,
    *,
    random: bool = False,
    on_pair: Callable[[], None] = lambda: None,
) -> CalibrationTable:
    """Measure the value range of every quantizable layer.

    Args:
        model: A filled fp32 model of any size, of the folded form or of the network ``fast``.
        pairs: At least ``MIN_PAIRS`` pairs; only the first ``MAX_PAIRS`` are used.
        task: Their task.
        method: ``min-max`` takes the largest absolute value, ``percentile`` the 99.99th percentile, and ``entropy`` the limit
            with the least Kullback-Leibler divergence.
        random: Whether the pairs are noise; recorded in the table.
        on_pair: Called after each pair.

    Raises:
        InputError: There are too few pairs, or one cannot be fused; the message names it.
        GateError: The inputs of a layer are all zero, or not finite.
    """
    inputs = {layer: node.input[0] for layer, node in layer_nodes(model).items()}
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    names = sorted(set(inputs.values()))
    observed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    session = ort.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    collector = HistogramCollector(
        method="entropy" if method == "entropy" else "percentile",
        symmetric=True, num_bins=_BINS, num_quantized_bins=_LEVELS, percentile=_PERCENTILE, scenario="same",
    )  # fmt: skip
    largest = dict.fromkeys(names, 0.0)
    used: list[ImagePair] = []
    for pair in pairs:
        # From the whole images, whose ranges the network will see.
        planes = planes_of(pair, task)
        used.append(replace(pair, a=_middle(pair.a), b=_middle(pair.b)))
        inputs_of_pair = {INPUT_A: _middle(planes.a[0, 0])[None, None], INPUT_B: _middle(planes.b[0, 0])[None, None]}
        values = dict(zip(names, session.run(names, inputs_of_pair), strict=True))
        for name, array in values.items():
            largest[name] = max(largest[name], float(np.abs(array).max()))
        if method != "min-max":
            with _silence():
                collector.collect(values)
        on_pair()
        if len(used) == MAX_PAIRS:
            break
    check_count(len(used))
    limits = largest if method == "min-max" else _limits(collector)
    ranges = {layer: limits[name] for layer, name in inputs.items()}
    for layer, limit in ranges.items():
        if not (np.isfinite(limit) and limit > 0):
            raise GateError(f"the largest input of the layer {layer} is {limit:g}, which gives no range", "check the weights")
    return CalibrationTable(method, ranges, len(used), fingerprint(used), random)


def check_count(pairs: int) -> None:
    """Require enough pairs to calibrate with.

    Raises:
        InputError: There are fewer than ``MIN_PAIRS``.
    """
    if pairs < MIN_PAIRS:
        raise InputError(
            f"calibration needs at least {MIN_PAIRS} pairs, and there are {pairs}",
            "add more from the same cameras, because ranges from so few do not hold for other images",
            expected=MIN_PAIRS,
            got=pairs,
        )


def planes_of(pair: ImagePair, task: Task) -> Planes:
    """Turn a pair into input planes of the network.

    Raises:
        InputError: It cannot be fused; the message names it.
    """
    try:
        return to_planes(pair.a, pair.b, task, encodings=pair.encodings)
    except InputError as error:
        raise error.within(f"pair {pair.name}") from error


def random_pairs(task: Task, count: int = MIN_PAIRS) -> Iterator[ImagePair]:
    """Yield pairs of noise, to try INT8 without images; their ranges mean nothing for real images."""
    draw = np.random.default_rng(len(task.name))
    for index in range(count):
        a, b = (draw.integers(0, 256, (48, 64), np.uint8) for _ in range(2))
        yield ImagePair(f"random{index}", a, b)


def spread(items: Sequence[object], count: int) -> list[int]:
    """Indices of at most ``count`` items, spread evenly over all of them."""
    return sorted({round(position) for position in np.linspace(0, len(items) - 1, min(count, len(items)))})


def _limits(collector: HistogramCollector) -> dict[str, float]:
    with _silence():
        found = collector.compute_collection_result()
    # Lower bound, upper bound, and the histogram.
    return {name: float(max(abs(bound) for bound in bounds[:2])) for name, bounds in found.items()}


def _middle(image: Array) -> Array:
    top, left = (max(0, (side - largest) // 2) for side, largest in zip(image.shape, _LARGEST_HW, strict=False))
    return np.ascontiguousarray(image[top : top + _LARGEST_HW[0], left : left + _LARGEST_HW[1]])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the collector's progress messages off standard output, which is for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
