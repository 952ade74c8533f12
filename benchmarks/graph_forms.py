"""What the graph forms save against the naive export, in ONNX Runtime and OpenVINO: CPU time, memory, accuracy.

python -m benchmarks.graph_forms [--size 480x640] [--rounds 5] [--weights FILE] [--variants] [--json FILE]

The naive graph is the network operator by operator as the official release computes it, exported by torch.onnx with its
weights as constants and simplified by onnxsim. Everything runs in one thread. CPU time is process time, with all graphs of one
runtime in turn in this process, median of the rounds; the load of the machine affects it less than wall time. Memory is the
peak that a separate process adds between loading the model and the third image. Needs torch, onnxscript and onnxsim for the
naive graph, and openvino for its half.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnxruntime as ort

from refusion_edge.accuracy.gate import compare, resized
from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.onnxruntime import OrtBackend, open_reference
from refusion_edge.backends.openvino import OpenVinoBackend
from refusion_edge.backends.registry import status
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import ImagePair, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.machine import processor
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.forms import FORMS, REFERENCE, GraphForm, Precision
from refusion_edge.network.graph import INPUT_A, INPUT_B, OPSET, OUTPUT, fill, read_template
from refusion_edge.network.weights import weights_path
from refusion_edge.sizes import parse_size
from refusion_edge.tasks import find_task

Fuse = Callable[[Float32Array, Float32Array], Float32Array]

_CPU = "cpu"
_NAIVE = "naive"
# The neighbours of the form for ONNX Runtime: what each of its rewrites is worth there.
_VARIANTS = {
    "onnxruntime, centered norm": GraphForm(split=True, convolved_mixing=True),
    "onnxruntime, two products": GraphForm(split=True, folded_norm=True),
    "onnxruntime, slices": GraphForm(folded_norm=True, convolved_mixing=True),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a graph in a runtime."""

    runtime: str
    graph: str
    open: Callable[[], Fuse]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CPU time and memory of the graph forms against the naive export.")
    parser.add_argument("--size", default="480x640", metavar="HxW", help="size of the images (default: 480x640)")
    parser.add_argument("--rounds", type=int, default=5, help="images per graph (default: 5)")
    parser.add_argument("--weights", type=Path, help="weights file (default: those of ir_vis)")
    parser.add_argument("--variants", action="store_true", help="also trace and measure neighbours of the onnxruntime form")
    parser.add_argument("--json", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()
    size_hw = parse_size(options.size)
    if size_hw is None:
        parser.error("'dynamic' is not a fixed size; write 480x640")
    state = read_checkpoint(options.weights or weights_path("ir_vis")).state
    pair = resized(read_pair(sample_paths("ir_vis")[0]), size_hw)

    print(f"{processor()}, {platform.system()}; {size_hw[0]}x{size_hw[1]}, one thread, {options.rounds} rounds")
    rows = _rows(state, size_hw, options.variants)
    report: list[dict[str, object]] = []
    with open_reference(state, 1) as reference:
        expected = reference.fuse(*_planes(pair))[0, 0]
    for runtime in dict.fromkeys(row.runtime for row in rows):
        report += _measure([row for row in rows if row.runtime == runtime], pair, expected, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _rows(state: State, size_hw: tuple[int, int], variants: bool) -> list[Row]:
    naive = naive_export(state, size_hw)
    models = {name: _filled(name, state, size_hw) for name in (_CPU, REFERENCE)}
    rows = [
        Row("onnxruntime", f"{_NAIVE}, default settings", partial(_open_plain_ort, naive)),
        Row("onnxruntime", _NAIVE, partial(_open_ort, naive)),
        Row("onnxruntime", REFERENCE, partial(_open_ort, models[REFERENCE])),
        Row("onnxruntime", _CPU, partial(_open_ort, models[_CPU])),
    ]
    if variants:
        from refusion_edge.export.graph.trace import trace

        FORMS.update(_VARIANTS)
        for name in _VARIANTS:
            model = fill(trace(name, "fp32"), state, size_hw).SerializeToString()
            rows.append(Row("onnxruntime", name, partial(_open_ort, model)))
    if status("openvino").usable:
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        for precision in precisions:
            for graph, model in ((_NAIVE, naive), (_CPU, models[_CPU])):
                rows.append(Row(f"openvino {precision}", graph, partial(_open_openvino, model, precision)))
    return rows


def _filled(form: str, state: State, size_hw: tuple[int, int]) -> bytes:
    model: bytes = fill(read_template(form, "fp32"), state, size_hw).SerializeToString()
    return model


def naive_export(state: State, size_hw: tuple[int, int]) -> bytes:
    """Export the official layout as anybody would: weights as constants, fixed size, onnxsim, nothing else."""
    import onnxsim
    import torch

    from benchmarks.official_layout import official_fuse

    class Official(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = list(state)
            self.values = torch.nn.ParameterList(torch.from_numpy(array.copy()) for array in state.values())

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return official_fuse(dict(zip(self.names, self.values, strict=True)), a, b)

    planes = tuple(torch.rand(1, 1, *size_hw) for _ in range(2))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Official().eval(), planes, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[INPUT_A, INPUT_B], output_names=[OUTPUT],
        )  # fmt: skip
    simplified, agrees = onnxsim.simplify(program.model_proto)
    if not agrees:
        raise SystemExit("the output of the naive graph changed when onnxsim simplified it; try another version of onnxsim")
    model: bytes = simplified.SerializeToString()
    return model


def _open_plain_ort(model: bytes) -> Fuse:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda a, b: session.run([OUTPUT], {INPUT_A: a, INPUT_B: b})[0]


def _open_ort(model: bytes) -> Fuse:
    return OrtBackend(model, threads=1).fuse


def _open_openvino(model: bytes, precision: Precision) -> Fuse:
    return OpenVinoBackend(model, precision=precision, threads=1).fuse


def _planes(pair: ImagePair) -> tuple[Float32Array, Float32Array]:
    planes = to_planes(pair.a, pair.b, find_task("ir_vis"))
    return planes.a, planes.b


def _measure(rows: list[Row], pair: ImagePair, expected: Float32Array, rounds: int) -> list[dict[str, object]]:
    memory = {row.graph: _in_own_process(row, pair) for row in rows}
    a, b = _planes(pair)
    engines = {row.graph: row.open() for row in rows}
    # The first image allocates; it is compared, not timed.
    fidelity = {name: compare(fuse(a, b)[0, 0], expected) for name, fuse in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, fuse in engines.items():
            started = time.process_time()
            fuse(a, b)
            times[name].append(time.process_time() - started)
    first = rows[0].graph
    print(f"\n{rows[0].runtime}\n{'graph':<28}{'CPU s':>8}{'x less':>8}{'MB added':>10}{'x less':>8}{'max error':>12}")
    report: list[dict[str, object]] = []
    for name, taken in times.items():
        cpu_s = statistics.median(taken)
        faster = statistics.median(base / one for base, one in zip(times[first], taken, strict=True))
        smaller = memory[first] / memory[name]
        error = fidelity[name].max_error / 255
        print(f"{name:<28}{cpu_s:>8.2f}{faster:>8.2f}{memory[name]:>10.0f}{smaller:>8.2f}{error:>12.1e}")
        report.append({
            "runtime": rows[0].runtime, "graph": name, "cpu_s": taken, "times_less_cpu": faster,
            "added_mb": memory[name], "times_less_memory": smaller, "max_error": error, "psnr_db": fidelity[name].psnr_db,
        })  # fmt: skip
    return report


def _in_own_process(row: Row, pair: ImagePair) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_added_mb, row.open, *_planes(pair)).result()


def _added_mb(open_engine: Callable[[], Fuse], a: Float32Array, b: Float32Array) -> float:
    before = _peak_mb()
    fuse = open_engine()
    for _ in range(3):
        fuse(a, b)
    return _peak_mb() - before


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/self/status does not show the peak memory; this benchmark needs Linux")


if __name__ == "__main__":
    raise SystemExit(main())
