"""A device next to the emulator: every launch of a small frame, buffer by buffer.

python -m benchmarks.gpu_emulator record FOLDER [--arch sm_90] [--networks refusion,fast] [--sizes 48x64,61x83]
python -m benchmarks.gpu_emulator compare FOLDER [--json FILE]
python -m benchmarks.gpu_emulator frame FOLDER

``record`` needs the emulator and Triton but no GPU. It builds a program of each network, executes its PTX, and stores the
program, every buffer that a launch wrote, and what every launch counted. ``compare`` needs a GPU, a driver layer and the
folder, and neither torch nor Triton nor the emulator: it runs the same program through the back end ``fused`` and compares

    alone    every launch on the operands that the emulator had, so that a difference belongs to this launch
    frame    the launches one after the other, so that differences add up

Bits may differ, because a device rounds approximations and the sums of tensor cores in its own way. A launch is good if its
results are within 4e-3 of the largest of them, and one level for 8 bits; a frame is good if it passes the limit of the
program's self-test. ``frame`` runs the frames once, for a profiler or a sanitizer around it. The exit code is 1 if a
comparison is not good.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from refusion_edge import cuda
from refusion_edge.arrays import Array, Float32Array, State, Uint8Array
from refusion_edge.backends.fused import FusedBackend, choose_target
from refusion_edge.cuda.driver import Driver, HostBuffer
from refusion_edge.cuda.program import Buffer, Program, unpack
from refusion_edge.cuda.program_file import parse_program, program_bytes
from refusion_edge.errors import BackendError, InputError, RefusionError, UsageError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.machine import parse_architectures, usable_cores
from refusion_edge.network.family import NETWORKS
from refusion_edge.sizes import check_size, parse_size

SCHEMA = "refusion-edge/gpu-emulator/1"
TASK = "ir_vis"
LIMIT = 4e-3
"""Largest error of a launch relative to its largest result, as for half precision in ``benchmarks.gpu_checks``."""

_MOST_BYTES = 256 << 20
# Small, and no size of a self-test; the second one where a recording has the first.
_OTHER_SIZES_HW = (8, 9), (8, 10)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A buffer after a launch that wrote to it.

    Attributes:
        launch: Place of the launch in the schedule.
        buffer: Name of the buffer.
        data: Its bytes.
        defined: Whether a launch has written each of them, 0 or 1, the same shape.
    """

    launch: int
    buffer: str
    data: Uint8Array
    defined: Uint8Array


@dataclass(frozen=True, slots=True)
class Recording:
    """One frame in the emulator.

    Attributes:
        network: Name of the network.
        planes: The sources, (2, H, W) float32, [0, 1].
        snapshots: In the order of the launches; only what a later launch or the host reads.
        counts: By launch, see ``benchmarks.gpu_counts.LaunchCounts``.
    """

    network: str
    planes: Float32Array
    snapshots: tuple[Snapshot, ...]
    counts: tuple[dict[str, float], ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.planes.shape[1], self.planes.shape[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Record, compare, or run the frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare", "frame"))
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the recordings")
    parser.add_argument("--arch", default="sm_90", help="architecture of the device, for record (default: %(default)s)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="networks to record (default: %(default)s)")
    parser.add_argument("--sizes", default="48x64,61x83", help="height x width of each frame to record (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON")
    options = parser.parse_args(argv)
    try:
        if options.action == "record":
            return _record(options)
        if options.action == "frame":
            return _run_frames(options.folder)
        return _compare(options)
    except RefusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


# ---- recording


def record(
    program: Program, architecture: int, network: str, planes: Float32Array, machine: Mapping[str, int] | None = None
) -> Recording:
    """Execute one frame of a program of PTX.

    Args:
        program: The program.
        architecture: 10 times the compute capability.
        network: Name of the network.
        planes: (2, H, W) float32, [0, 1].
        machine: Instructions in the machine code of every kernel; without them, instructions are those of the PTX.

    Raises:
        BackendError: The checker found a fault; there is nothing to compare a device with.
    """
    from benchmarks.gpu_counts import launch_counts
    from refusion_edge.kernels.emulator.counters import count
    from refusion_edge.kernels.emulator.device import EmulatedDevice
    from refusion_edge.kernels.emulator.findings import faults
    from refusion_edge.kernels.gpu.simulated_device import Call

    snapshots: list[Snapshot] = []

    class Recorder(EmulatedDevice):
        def compute(self, call: Call) -> None:
            super().compute(call)
            if call.index == 0:
                snapshots.clear()
            for buffer, parameter in written(program, call.index):
                data = call.arguments[parameter].view(np.uint8).copy()
                snapshots.append(Snapshot(call.index, buffer.name, data, self.defined[buffer.name].copy()))

    device = Recorder(program, architecture)
    with FusedBackend(program_bytes(program), network, device) as engine:
        engine.fuse(planes[:1, None], planes[1:, None])
        results = device.results[-len(program.schedule.launches) :]
    if found := faults(device.findings):
        raise BackendError(f"the checker found faults in {network}: {found[0]}", "run python -m refusion_edge.kernels.emulator")
    shares = {name: machine[name] / len(result.kernel.opcodes) if machine else 1.0 for name, result in results}
    counts = tuple(asdict(launch_counts(count([result]), shares[name])) for name, result in results)
    return Recording(network, planes, tuple(snapshots), counts)


def written(program: Program, launch: int) -> Iterator[tuple[Buffer, str]]:
    """Buffers that a launch writes and somebody reads afterwards, each with the name of the parameter."""
    started = program.schedule.launches[launch]
    for parameter, argument in zip(program.schedule.kernels[started.kernel].parameters, started.arguments, strict=True):
        if argument.kind == "buffer" and parameter.written:
            buffer = program.schedule.buffers[argument.name]
            if buffer.role == "output" or buffer.last > launch:
                yield buffer, parameter.name


def store(folder: Path, program: bytes, recordings: Iterable[Recording]) -> None:
    """Write a program and its recordings into a folder.

    Args:
        folder: Where; other networks in it stay.
        program: Bytes of the program file.
        recordings: Of one network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recordings = list(recordings)
    for network in {one.network for one in recordings}:
        for stale in folder.glob(f"{network}-*.npz"):
            stale.unlink()  # of another program
    for one in recordings:
        write_atomically(folder / f"{one.network}.rfx", program)
        arrays: dict[str, Any] = {"planes": one.planes, "counts": np.array(json.dumps(one.counts))}
        for snapshot in one.snapshots:
            arrays[f"{snapshot.launch:02} {snapshot.buffer}"] = snapshot.data
            arrays[f"{snapshot.launch:02} {snapshot.buffer} defined"] = np.packbits(snapshot.defined)
        height, width = one.size_hw
        with (folder / f"{one.network}-{height}x{width}.npz").open("wb") as file:
            np.savez_compressed(file, **arrays)


def load(folder: Path) -> list[tuple[Program, bytes, Recording]]:
    """Read what ``store`` wrote: for each recording its program, parsed and as it is.

    Raises:
        InputError: The folder holds no recordings.
        BundleError: A program file is damaged.
    """
    found = []
    for path in sorted(folder.glob("*.npz")):
        network = path.stem.rpartition("-")[0]
        data = read_file(folder / f"{network}.rfx", kind="program file", most_bytes=_MOST_BYTES, error=InputError)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                snapshots = tuple(
                    Snapshot(
                        int(key.split()[0]),
                        key.split()[1],
                        arrays[key],
                        np.unpackbits(arrays[f"{key} defined"])[: arrays[key].size],
                    )
                    for key in arrays.files
                    if len(key.split()) == 2
                )
                recording = Recording(network, arrays["planes"], snapshots, tuple(json.loads(str(arrays["counts"]))))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error})", "record it again") from None
        found.append((parse_program(data, network), data, recording))
    if not found:
        raise InputError(
            f"{folder} holds no recordings", f"run 'python -m benchmarks.gpu_emulator record {folder}' where the emulator is"
        )
    return found


def _record(options: argparse.Namespace) -> int:
    from benchmarks.gpu_counts import machine_instructions
    from refusion_edge.export.targets.cubins import dump, make_program
    from refusion_edge.export.targets.ptx import with_ptx
    from refusion_edge.kernels.emulator.compiled import load_module
    from refusion_edge.network.checkpoint import read_checkpoint
    from refusion_edge.network.weights import weights_path

    load_module()
    architectures, networks = parse_architectures(options.arch), options.networks.split(",")
    if len(architectures) != 1:
        raise UsageError(f"--arch names {len(architectures)} architectures", "name one", expected=1, got=len(architectures))
    if unknown := [name for name in networks if name not in NETWORKS]:
        raise UsageError(f"there is no network {', '.join(unknown)}", f"choose from {', '.join(NETWORKS)}")
    (architecture,), sizes_hw = architectures, _sizes(options.sizes)
    for network in networks:
        state: State = read_checkpoint(weights_path(TASK, network)).state
        program = make_program(state, {"task": TASK, "network": network}, [architecture], jobs=usable_cores())
        machine = {
            name: machine_instructions(dump(binary, "-sass")) for name, binary in program.targets[architecture].binaries.items()
        }
        executed = with_ptx(program, architecture, jobs=usable_cores())
        recordings = [record(executed, architecture, network, sample_planes(size_hw), machine) for size_hw in sizes_hw]
        store(options.folder, program_bytes(program), recordings)
        print(f"recorded {network} for sm_{architecture}: {', '.join('x'.join(map(str, one)) for one in sizes_hw)}", flush=True)
    return 0


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes_hw = [size_hw for one in text.split(",") if (size_hw := parse_size(one)) is not None]
    if len(sizes_hw) != len(text.split(",")):
        raise UsageError(f"'{text}' is not a list of sizes", "write HEIGHTxWIDTH, separated by commas", got=text)
    for size_hw in sizes_hw:
        check_size(size_hw)
    return sizes_hw


def sample_planes(size_hw: tuple[int, int]) -> Float32Array:
    """A sample pair of the task, (2, H, W) float32, [0, 1]."""
    from benchmarks.peers import planes

    a, b = planes(size_hw)
    return np.concatenate([a[0], b[0]])


# ---- comparing


class WatchedDriver:
    """A driver that copies what every launch of a recorded frame wrote. Implements ``Driver`` by handing everything else on.

    The copies become part of the frame's graph.

    Args:
        driver: The device.
        program: The program that will run.
        recording: The frame.
        alone: Whether every launch gets the operands of the recording instead of what the launches before it wrote.
    """

    def __init__(self, driver: Driver, program: Program, recording: Recording, *, alone: bool) -> None:
        self._driver, self._program, self._recording, self._alone = driver, program, recording, alone
        self._copies: dict[tuple[int, str], tuple[HostBuffer, HostBuffer]] = {}
        self._launch = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def __enter__(self) -> Self:
        self._driver.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for buffers in self._copies.values():
            for buffer in buffers:
                self._driver.free_host(buffer)
        self._copies.clear()
        self._driver.__exit__(kind, error, traceback)

    def watch(self) -> None:
        """Copy from the next graph on, which must be of the recorded size."""
        for snapshot in self._recording.snapshots:
            # Nothing can be allocated while a graph is recorded.
            found, expected = (self._driver.allocate_host(snapshot.data.size, mapped=False) for _ in range(2))
            expected.array[:] = snapshot.data
            self._copies[snapshot.launch, snapshot.buffer] = found, expected

    def found(self, snapshot: Snapshot) -> Uint8Array:
        """What the device has in the place of a snapshot."""
        return self._copies[snapshot.launch, snapshot.buffer][0].array

    def capture(self, stream: int, work: Any) -> Any:
        """Record a graph, see ``Driver.capture``."""
        self._launch = 0
        return self._driver.capture(stream, work)

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        """Start a function and copy what it wrote, see ``Driver.launch_kernel``."""
        self._driver.launch_kernel(function, grid, threads, shared_bytes, arguments, stream)
        launch, self._launch = self._launch, self._launch + 1
        if not self._copies:
            return
        name = self._program.schedule.launches[launch].kernel
        parameters = self._program.schedule.kernels[name].parameters
        binary = choose_target(self._program, self._driver.device).binaries[name]
        values = dict(
            zip((one.name for one in parameters), unpack(parameters, arguments, binary.hidden_pointers), strict=False)
        )
        for buffer, parameter in written(self._program, launch):
            found, expected = self._copies[launch, buffer.name]
            self._driver.download(found, values[parameter], stream)
            if self._alone:
                self._driver.upload(values[parameter], expected, stream)


def compare(program: Program, data: bytes, recording: Recording, driver: Driver, *, alone: bool) -> list[Row]:
    """Run a recorded frame on a device.

    Args:
        program: The program.
        data: Its bytes.
        recording: What the emulator computed.
        driver: The device; closed when this returns.
        alone: Whether every launch gets the operands of the recording.

    Returns:
        A row for each buffer that a launch wrote: how many ``elements`` there are, how many are ``different`` in any bit, the
        largest difference in ``ulps`` of half precision, the largest ``error`` relative to the largest result (in levels for 8
        bits; None if it is not finite), the ``limit`` of that or None, and whether it is ``good``.
    """
    watched = WatchedDriver(driver, program, recording, alone=alone)
    rows = []
    with FusedBackend(data, recording.network, watched) as engine:
        # The graph of the self-test, if it has this size, copies nothing.
        other_hw = next(size_hw for size_hw in _OTHER_SIZES_HW if size_hw != recording.size_hw)
        engine.fuse(*(np.zeros((1, 1, *other_hw), np.float32) for _ in range(2)))
        watched.watch()
        engine.fuse(recording.planes[:1, None], recording.planes[1:, None])
        for snapshot in recording.snapshots:
            buffer = program.schedule.buffers[snapshot.buffer]
            row: Row = {
                "network": recording.network,
                "size_hw": list(recording.size_hw),
                "mode": "alone" if alone else "frame",
                "launch": snapshot.launch,
                "kernel": program.schedule.launches[snapshot.launch].kernel,
                "buffer": snapshot.buffer,
                "dtype": buffer.dtype,
            }
            limit = _limit(program, buffer, alone=alone)
            rows.append({**row, **difference(watched.found(snapshot), snapshot, buffer.dtype, limit)})
    return rows


def difference(found: Uint8Array, snapshot: Snapshot, dtype: str, limit: float | None) -> Row:
    """Compare the bytes of a buffer with a snapshot where that is defined; see ``compare``."""
    size = np.dtype(dtype).itemsize
    defined = snapshot.defined.reshape(-1, size).all(axis=1)
    got, expected = (data.view(dtype)[defined] for data in (found, snapshot.data))
    different = int((found.reshape(-1, size)[defined] != snapshot.data.reshape(-1, size)[defined]).any(axis=1).sum())
    with np.errstate(all="ignore"):
        off = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        # Infinities and NaN that are the same are no difference.
        off[got == expected] = 0
        off[np.isnan(got) & np.isnan(expected)] = 0
    largest = (
        1.0 if dtype == "uint8" else float(np.abs(expected, dtype=np.float64).max(initial=0.0, where=np.isfinite(expected)))
    )
    worst = float(off.max(initial=0.0))
    # A result that is zero everywhere has no scale of its own.
    error = worst / largest if largest else worst
    ulps = None if dtype == "uint8" else float((off / half_spacing(got, expected)).max(initial=0.0))
    return {
        "elements": int(defined.sum()),
        "different": different,
        "ulps": ulps if ulps is None or math.isfinite(ulps) else None,
        "error": error if math.isfinite(error) else None,
        "limit": limit,
        # Not "error > limit", which is false for NaN.
        "good": limit is None or error <= limit,
    }


def half_spacing(a: Array, b: Array) -> Array:
    """Distance between neighbors in half precision at the larger of two magnitudes, beyond its range as if it went on."""
    magnitude = np.nan_to_num(np.maximum(np.abs(a, dtype=np.float64), np.abs(b, dtype=np.float64)), posinf=0.0)
    # Below 2^-14 all of them are as far apart.
    exponent = np.frexp(np.maximum(magnitude, 2.0**-14))[1] - 1
    spacing: Array = np.exp2(exponent - 10.0)
    return spacing


def _limit(program: Program, buffer: Buffer, *, alone: bool) -> float | None:
    if buffer.dtype == "uint8":
        return 1.0 if alone else None
    if alone:
        return LIMIT
    return program.self_test.tolerance if buffer.role == "output" else None


def _compare(options: argparse.Namespace) -> int:
    rows: list[Row] = []
    device = ""
    for program, data, recording in load(options.folder):
        for alone in (True, False):
            driver = cuda.open_driver()
            device = str(driver.device)
            rows += compare(program, data, recording, driver, alone=alone)
    document = {"schema": SCHEMA, "device": device, "rows": rows}
    if options.json:
        write_atomically(options.json, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    print(table(rows), end="")
    return 0 if all(row["good"] for row in rows) else 1


def table(rows: Sequence[Row]) -> str:
    """The comparison as Markdown: for each kernel the launches alone, for each output the frame."""
    lines = [
        "| network | what | values | different bits | largest difference, fp16 ulps | good |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["mode"] == "alone":
            groups.setdefault((row["network"], f"`{row['kernel']}`"), []).append(row)
        elif row["limit"] is not None:
            groups.setdefault((row["network"], f"{row['buffer']} of the frame"), []).append(row)
    for (network, what), group in groups.items():
        elements = sum(row["elements"] for row in group)
        share = sum(row["different"] for row in group) / max(elements, 1)
        counted = [row["ulps"] for row in group if row["dtype"] != "uint8"]
        ulps = "" if not counted else "not finite" if None in counted else f"{max(counted):.3g}"
        good = "yes" if all(row["good"] for row in group) else "**no**"
        lines.append(f"| {network} | {what} | {elements} | {100 * share:.2f} % | {ulps} | {good} |")
    return "\n".join(lines) + "\n"


def _run_frames(folder: Path) -> int:
    for _, data, recording in load(folder):
        with FusedBackend(data, recording.network, cuda.open_driver()) as engine:
            engine.fuse(recording.planes[:1, None], recording.planes[1:, None])
            print(f"ran {recording.network} at {'x'.join(map(str, recording.size_hw))} on {engine.device}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
