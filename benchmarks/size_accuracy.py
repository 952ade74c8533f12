"""The error of every back end in fp32 against float64, by the size of the image.

python -m benchmarks.size_accuracy [--sizes HxW ...] [--networks NAME ...] [--engines NAME ...] [--json FILE]
python -m benchmarks.size_accuracy --table FILE

The sums of the attention run over all pixels, so their rounding may grow with the image. ``refusion`` is compared with the
operators of the official release in float64 (``benchmarks.official_layout``), and ``fast`` with its definition in float64.

The image repeats one tile, the sample pair of ``ir_vis`` at 240x320. Between the sums over the image, both networks see no
further than a tile, so all inner tiles have the same result: three by three tiles are computed in float64, of which those in
the middle count as often in the sums as they are repeated.

Each engine runs in a process of its own, with one thread and the memory that is free; one that needs more is listed with the
reason. Errors are of full scale. Needs torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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

SIZES = ("480x640", "720x1280", "1200x1600", "1440x2560", "2160x3840")
LIMIT = 2e-5
OFFICIAL, GRAPH, NATIVE = "official operators in torch", "official graph in ONNX Runtime", "native "

_TASK = "ir_vis"
_TILE_HW = (240, 320)
# Memory that is left to the rest of the machine.
_SPARE_BYTES = 3 << 30

T = TypeVar("T")

Fuse = Callable[[Float32Array, Float32Array], Float32Array]


@dataclass(frozen=True, slots=True)
class Row:
    """Error of one engine at one size.

    Attributes:
        network: Name of the network.
        size: HEIGHTxWIDTH.
        engine: Name of the engine.
        max_error: Largest error of a pixel, of full scale; None where the engine could not run.
        rms_error: Root mean square error, likewise.
        problem: Why it could not run, or empty.
    """

    network: str
    size: str
    engine: str
    max_error: float | None
    rms_error: float | None
    problem: str = ""


def main() -> int:
    """Measure, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="HxW", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--engines", nargs="+", metavar="NAME", help="only these engines (default: all that run here)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON; what is there already is kept")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of such a file, and measure nothing")
    options = parser.parse_args()
    if options.table:
        report = json.loads(options.table.read_text())
        print("\n\n".join(tables([Row(**row) for row in report["rows"]])))
        return 0
    if misfit := next((size for size in options.sizes if tiles_of(size) is None), None):
        parser.error(f"{misfit} is not a multiple of {_TILE_HW[0]}x{_TILE_HW[1]}")
    report = json.loads(options.json.read_text()) if options.json and options.json.exists() else {"rows": []}
    rows = [Row(**row) for row in report["rows"]]
    for network, size in itertools.product(options.networks, options.sizes):
        rows = [row for row in rows if (row.network, row.size) != (network, size) or row.max_error is not None]  # others again
        measured = {row.engine for row in rows if (row.network, row.size) == (network, size)}
        for row in measure(network, size, [name for name in options.engines or engines(network) if name not in measured]):
            print(_line(row), flush=True)
            rows.append(row)
            if options.json:
                report = {"processor": processor(), "limit": LIMIT, "rows": [asdict(row) for row in rows]}
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row.max_error is not None and not row.max_error <= LIMIT for row in rows))  # not NaN either


def engines(network: str) -> list[str]:
    """Everything that runs weights of a network here in fp32; ``native`` once for each instruction set."""
    found = [NATIVE + isa for isa in instruction_sets()] if "native" in usable_runners(network) else []
    found += [name for name in usable_runners(network) if name != "native"]
    return [*found, GRAPH, *([OFFICIAL] if network == "refusion" else [])]


def measure(network: str, size: str, names: Sequence[str]) -> Iterator[Row]:
    """Compare engines with float64 on an image of one size."""
    tiles = tiles_of(size)
    if not names or tiles is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder, "expected.npy")
        _alone(_save_exact, expected, network, tiles)
        for name in names:
            row = Row(network, size, name, None, None)
            try:
                yield _alone(_measured, row, tiles, expected)
            except BrokenProcessPool:
                yield replace(row, problem="the process was killed")


def tiles_of(size: str) -> tuple[int, int] | None:
    """Number of tiles of an image, down and across; None if there are no whole tiles."""
    height, width = parse_size(size) or (1, 1)
    return None if height % _TILE_HW[0] or width % _TILE_HW[1] else (height // _TILE_HW[0], width // _TILE_HW[1])


def tile_planes() -> Float32Array:
    """Both sources of one tile, (2, H, W), [0, 1]."""
    pair = resized(read_pair(sample_paths(_TASK)[0]), _TILE_HW)
    sources = to_planes(pair.a, pair.b, find_task(_TASK))
    return np.concatenate([sources.a[0], sources.b[0]])


def exact(network: str, state: State, tile: Float32Array, tiles: tuple[int, int]) -> Float64Array:
    """What a network makes of an image of repeated tiles, in float64.

    Args:
        network: Name of the network.
        state: Its parameters.
        tile: Both sources of one tile, (2, H, W), [0, 1]; from 32x32.
        tiles: Number of tiles, down and across.

    Returns:
        (tiles[0] * H, tiles[1] * W).
    """
    height, width = tile.shape[1:]
    few = min(3, tiles[0]), min(3, tiles[1])
    a, b = np.tile(tile, (1, *few))
    fused: Float64Array
    if network == "fast":
        fused = fast.reference(state, a, b, fast.statistics(*np.tile(tile, (1, *tiles))))
    else:
        fused = _exact_official(state, a, b, _times(tiles[0], height)[:, None] * _times(tiles[1], width))
    for axis, (count, side) in enumerate(zip(tiles, (height, width), strict=True)):
        if count > 3:
            first, middle, last = np.split(fused, 3, axis)
            assert middle.shape[axis] == side
            fused = np.concatenate([first, *[middle] * (count - 2), last], axis)
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
    """One table for each network: the largest error by engine and size."""
    found = []
    for network in dict.fromkeys(row.network for row in rows):
        here = [row for row in rows if row.network == network]
        names = dict.fromkeys(row.engine for row in here)
        sizes = sorted({row.size for row in here}, key=lambda size: math.prod(map(int, size.split("x"))))
        cells = {(row.engine, row.size): _cell(row) for row in here}
        lines = [f"| {network} | " + " | ".join(sizes) + " |", "| --- " + "| ---: " * len(sizes) + "|"]
        lines += [f"| {name} | " + " | ".join(cells.get((name, size), "") for size in sizes) + " |" for name in names]
        found.append("\n".join(lines))
    return found


def _alone(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own, whose memory comes back at its end."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_start) as pool:
        return pool.submit(function, *arguments).result()


def _start() -> None:
    # Before torch is imported, which takes longer than some engines.
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    most = max(0, free - _SPARE_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _save_exact(path: Path, network: str, tiles: tuple[int, int]) -> None:
    np.save(path, exact(network, _state(network), tile_planes(), tiles))


def _measured(row: Row, tiles: tuple[int, int], expected: Path) -> Row:
    a, b = np.tile(tile_planes(), (1, *tiles))[:, None, None]
    try:
        fused = open_fuse(row.engine, _state(row.network))(a, b)[0, 0]
    except (RefusionError, RuntimeError, MemoryError) as error:
        return replace(row, problem=str(error).partition("\n")[0] or type(error).__name__)
    error = np.abs(fused - np.load(expected))
    return replace(row, max_error=float(error.max()), rms_error=float(np.sqrt(np.mean(np.square(error)))))


def _exact_official(state: State, a: Float32Array, b: Float32Array, counts: Float64Array) -> Float64Array:
    import torch

    from benchmarks.official_layout import official_fuse_in_strips

    parameters = {name: torch.from_numpy(array.astype(np.float64)) for name, array in state.items()}
    with torch.inference_mode():
        planes = (torch.from_numpy(plane.astype(np.float64))[None, None] for plane in (a, b, counts))
        source_a, source_b, times = planes
        fused: Float64Array = official_fuse_in_strips(parameters, source_a, source_b, counts=times)[0, 0].numpy()
    return fused


def _times(count: int, side: int) -> Float64Array:
    """How often each pixel of at most three tiles counts: those of the middle one stand for all inner ones."""
    return np.repeat([1.0, count - 2.0, 1.0] if count > 2 else [1.0] * count, side)


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
    return f"{row.network:9}{row.size:>10}  {row.engine:32}{_cell(row):>9}{rms:>9}  {row.problem}"


if __name__ == "__main__":
    sys.exit(main())
