"""The error of every back end in fp32 against float64, by the size of the image.

python -m benchmarks.size_accuracy [--sizes HxW ...] [--networks NAME ...] [--engines NAME ...] [--content KIND ...]
    [--references DIR] [--json FILE]
python -m benchmarks.size_accuracy --table FILE

The sums of the attention run over all pixels, so their rounding may grow with the image. ``refusion`` is compared with the
operators of the official release in float64, computed in strips (``benchmarks.official_layout``), and ``fast`` with its
definition in float64. Each engine runs in a process of its own, which may take the memory that is free and no more; one that
needs more is listed with the reason. The sample pair of ``ir_vis`` is continued to the size by mirroring (``mirrored``), which
keeps its detail, or enlarged to it (``enlarged``), which gives large smooth areas. ``--references`` keeps the results in
float64, which take most of the time. Errors are of full scale. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from refusion_edge.accuracy.gate import resized
from refusion_edge.arrays import Float32Array, Float64Array, State
from refusion_edge.backends.native import NativeBackend, instruction_sets
from refusion_edge.backends.onnxruntime import open_reference
from refusion_edge.backends.registry import RunOptions, open_weights, usable_runners
from refusion_edge.errors import RefusionError
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.machine import processor
from refusion_edge.network import fast
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.family import NETWORKS
from refusion_edge.network.weights import weights_path
from refusion_edge.sizes import parse_size
from refusion_edge.tasks import find_task

SIZES = ("480x640", "864x1152", "1088x1920", "1728x2304", "2160x3840")
CONTENTS = ("mirrored", "enlarged")
LIMIT = 2e-5
OFFICIAL, GRAPH, NATIVE = "official operators in torch", "official graph in ONNX Runtime", "native "

_TASK = "ir_vis"
# Memory that is left to the rest of the machine.
_SPARE_BYTES = 3 << 30

T = TypeVar("T")

Fuse = Callable[[Float32Array, Float32Array], Float32Array]


@dataclass(frozen=True, slots=True)
class Row:
    """Error of one engine at one size.

    Attributes:
        network: Name of the network.
        content: How the sample pair was brought to the size.
        size: HEIGHTxWIDTH.
        engine: Name of the engine.
        max_error: Largest error of a pixel, of full scale; None where the engine could not run.
        rms_error: Root mean square error, likewise.
        problem: Why it could not run, or empty.
    """

    network: str
    content: str
    size: str
    engine: str
    max_error: float | None
    rms_error: float | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Case:
    """A pair at one size, and what a network makes of it in float64: files that every process reads."""

    network: str
    content: str
    size: str
    folder: Path

    @property
    def _stem(self) -> str:
        return f"{self.content}-{self.size}"

    @property
    def sources(self) -> Path:
        return self.folder / f"{self._stem}.npy"

    @property
    def expected(self) -> Path:
        return self.folder / f"{self._stem}-{self.network}.npy"


def main() -> int:
    """Measure, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="HxW", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--engines", nargs="+", metavar="NAME", help="only these engines (default: all that run here)")
    parser.add_argument("--content", nargs="+", choices=CONTENTS, default=[CONTENTS[0]], help=f"default: {CONTENTS[0]}")
    parser.add_argument("--references", type=Path, metavar="DIR", help="keep the results in float64 here, and use those there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of such a file, and measure nothing")
    options = parser.parse_args()
    if options.table:
        report = json.loads(options.table.read_text())
        print("\n\n".join(tables([Row(**row) for row in report["rows"]])))
        return 0
    if problem := next((size for size in options.sizes if parse_size(size) is None), None):
        parser.error(f"'{problem}' is not a fixed size; write 480x640")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.references or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for network in options.networks:
            for content in options.content:
                for size in options.sizes:
                    for row in measure(_Case(network, content, size, folder), options.engines or engines(network)):
                        print(_line(row), flush=True)
                        rows.append(row)
                    if options.json:
                        report = {"processor": processor(), "limit": LIMIT, "rows": [asdict(row) for row in rows]}
                        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row.max_error is not None and row.max_error > LIMIT for row in rows))


def engines(network: str) -> list[str]:
    """Everything that runs weights of a network here in fp32; ``native`` once for each instruction set."""
    found = [NATIVE + isa for isa in instruction_sets()] if "native" in usable_runners(network) else []
    found += [name for name in usable_runners(network) if name != "native"]
    return [*found, GRAPH, *([OFFICIAL] if network == "refusion" else [])]


def measure(case: _Case, names: Sequence[str]) -> list[Row]:
    """Compare engines with float64 on one pair."""
    if not case.sources.exists():
        np.save(case.sources, planes(case.content, case.size))
    if not case.expected.exists():
        _alone(_compute_expected, case)
    rows = []
    for name in names:
        try:
            rows.append(_alone(_measured, case, name))
        except BrokenProcessPool:
            rows.append(Row(case.network, case.content, case.size, name, None, None, "the process was killed"))
    return rows


def planes(content: str, size: str) -> Float32Array:
    """Both sources of the sample pair at a size, (2, H, W), [0, 1]."""
    size_hw = parse_size(size)
    assert size_hw is not None
    pair = read_pair(sample_paths(_TASK)[0])
    if content == "enlarged":
        pair = resized(pair, size_hw)
    sources = to_planes(pair.a, pair.b, find_task(_TASK))
    both = np.concatenate([sources.a[0], sources.b[0]])
    missing = [max(0, wanted - has) for wanted, has in zip(size_hw, both.shape[1:], strict=True)]
    both = np.pad(both, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")
    return np.ascontiguousarray(both[:, : size_hw[0], : size_hw[1]])


def exact(network: str, state: State, a: Float32Array, b: Float32Array) -> Float64Array:
    """What a network makes of two planes, (H, W), in float64."""
    if network == "fast":
        return fast.reference(state, a, b)
    import torch

    from benchmarks.official_layout import official_fuse_in_strips

    parameters = {name: torch.from_numpy(array.astype(np.float64)) for name, array in state.items()}
    with torch.inference_mode():
        sources = (torch.from_numpy(plane.astype(np.float64))[None, None] for plane in (a, b))
        fused: Float64Array = official_fuse_in_strips(parameters, *sources, rows=32)[0, 0].numpy()
    return fused


def open_fuse(engine: str, state: State) -> Fuse:
    """Open an engine by its name in the table."""
    if engine == OFFICIAL:
        return _official(state)
    if engine == GRAPH:
        return open_reference(state, 1).fuse
    if engine.startswith(NATIVE):
        return NativeBackend(state, threads=1, isa=engine.removeprefix(NATIVE)).fuse
    return open_weights(state, engine, RunOptions(threads=1)).fuse


def tables(rows: Sequence[Row]) -> list[str]:
    """One table for each network and content: the largest error by engine and size."""
    found = []
    for network, content in dict.fromkeys((row.network, row.content) for row in rows):
        here = [row for row in rows if (row.network, row.content) == (network, content)]
        sizes, names = list(dict.fromkeys(row.size for row in here)), list(dict.fromkeys(row.engine for row in here))
        cells = {(row.engine, row.size): _cell(row) for row in here}
        lines = [f"| {network}, {content} | " + " | ".join(sizes) + " |", "| --- " + "| ---: " * len(sizes) + "|"]
        lines += [f"| {name} | " + " | ".join(cells.get((name, size), "") for size in sizes) + " |" for name in names]
        found.append("\n".join(lines))
    return found


def _alone(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own, whose memory comes back at its end."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_limit_memory) as pool:
        return pool.submit(function, *arguments).result()


def _limit_memory() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    most = max(0, free - _SPARE_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _compute_expected(case: _Case) -> None:
    _one_thread()
    a, b = np.load(case.sources)
    np.save(case.expected, exact(case.network, _state(case.network), a, b))


def _measured(case: _Case, engine: str) -> Row:
    _one_thread()
    a, b = np.load(case.sources)[:, None, None]
    row = Row(case.network, case.content, case.size, engine, None, None)
    try:
        fused = open_fuse(engine, _state(case.network))(a, b)[0, 0]
    except (RefusionError, RuntimeError, MemoryError) as error:
        return replace(row, problem=str(error).partition("\n")[0] or type(error).__name__)
    error = np.abs(fused - np.load(case.expected))
    return replace(row, max_error=float(error.max()), rms_error=float(np.sqrt(np.mean(np.square(error)))))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _official(state: State) -> Fuse:
    import torch

    from benchmarks.official_layout import official_fuse

    parameters = {name: torch.from_numpy(array) for name, array in state.items()}

    def fuse(a: Float32Array, b: Float32Array) -> Float32Array:
        with torch.inference_mode():
            fused: Float32Array = official_fuse(parameters, torch.from_numpy(a), torch.from_numpy(b)).numpy()
        return fused

    return fuse


def _state(network: str) -> State:
    return read_checkpoint(weights_path(_TASK, network)).state


def _cell(row: Row) -> str:
    return "" if row.max_error is None else f"{row.max_error:.1e}"


def _line(row: Row) -> str:
    rms = "" if row.rms_error is None else f"{row.rms_error:.1e}"
    return f"{row.network:9}{row.content:10}{row.size:>10}  {row.engine:32}{_cell(row):>9}{rms:>9}  {row.problem}"


if __name__ == "__main__":
    sys.exit(main())
