"""A model of the frame time on devices that have not been measured, from what the compiled kernels do.

python -m benchmarks.gpu_model PROGRAM.rfx [--json FILE]    count, with the emulator and the disassembler that comes with Triton
python -m benchmarks.gpu_model --table FILE                 print the tables of docs/gpu.md from such a JSON
python -m benchmarks.gpu_model --table FILE --beside RUN    compare it with the JSON of ``benchmarks.gpu_suite`` on a device

Build the program with ``refusion-edge build --task ir_vis --backend fused --arch sm_87,sm_89,sm_90,sm_110``; no GPU is needed.

Every launch takes the longest of these times, and a frame the sum of its launches:

    issue      its instructions on the four schedulers of each multiprocessor, one each per clock
    tensor     its products on the tensor cores
    shared     its wavefronts through shared memory, 128 bytes per clock and multiprocessor
    L1         the sectors that its warps ask for, four of 32 bytes per clock and multiprocessor
    memory     the sectors that it touches, each once, at the rate of the memory
    serial     where a single program walks over all strips: its instructions, each waiting for the one before
    launch     what starting a kernel in a graph takes

Counts come from the PTX in the emulator (``benchmarks.gpu_counts``). Wavefronts, sectors and products are the same in the
machine code; instructions are scaled by the length of both. The clocks between dependent instructions and the time of a launch
are assumptions, named below. Latencies that other warps do not hide and waves that do not fill the device are left out, so the
model is a lower bound. The tables also show it at 60 % of all rates, which is a guess.

The model before this one, printed beside it, knew only issue, tensor and memory. It counted the loops over rows in the machine
code, and the bytes in the schedule.

For the network ``fast``, add ``--network fast --precision fp16``. The only launch with convolutions there walks down its strip
once for each of them, and computes some rows and columns twice. The older model counts both, the instructions around those
walks, and one write and one read of what lies between two convolutions.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_counts import at, count_kernels
from benchmarks.kernel_work import frame_work, layer_rows, scratch_bytes
from refusion_edge.backends.fused import choose_target
from refusion_edge.cuda.driver import Device
from refusion_edge.cuda.program import Program
from refusion_edge.cuda.program_file import parse_program
from refusion_edge.export.targets.cubins import dump
from refusion_edge.files import write_atomically

SCHEMA = "refusion-edge/gpu-model/2"
SIZES_HW = ((480, 640), (1024, 1280))
EFFICIENCY = 0.6
_SCHEDULERS = 4
_SECTORS_PER_CLOCK = 4
_SECTOR_BYTES = 32
# Assumptions: clocks from an instruction to one that needs its result, and the start of a kernel in a graph.
_DEPENDENT_CLOCKS = 4
_LAUNCH_US = 1.5
BOUNDS = ("issue", "tensor", "shared", "L1", "memory", "serial", "launch")
_THREADS_OF_A_GROUP = 4  # warps that take part in one HGMMA

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_PRODUCTS = {"HMMA.16816": 16 * 8 * 16, "HMMA.1688": 16 * 8 * 8}


@dataclass(frozen=True, slots=True)
class Chip:
    """Rates of a device from its data sheet.

    Attributes:
        name: Name.
        architecture: 10 times the compute capability.
        multiprocessors: How many.
        clock_ghz: Of the multiprocessors.
        products_per_clock: Multiply-adds of fp16 summed in fp32, for each multiprocessor and clock, without sparsity.
        gb_per_s: Memory.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock_ghz: float
    products_per_clock: int
    gb_per_s: float


CHIPS = (
    Chip("Jetson Orin Nano Super 8 GB", 87, 8, 1.02, 1024, 102.0),
    Chip("Jetson Orin NX 16 GB, Super clocks", 87, 8, 1.173, 1024, 102.4),
    Chip("Jetson AGX Orin 64 GB", 87, 16, 1.3, 1024, 204.8),
    Chip("Jetson Thor T5000", 110, 20, 1.575, 4096, 273.0),
    Chip("GeForce RTX 4090", 89, 128, 2.52, 256, 1008.0),
    Chip("H200", 90, 132, 1.83, 2048, 4800.0),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one launch per pixel of the image.

    Attributes:
        kernel: Name of the kernel.
        instructions: Instructions of warps.
        products: Multiply-adds that the tensor cores do, repeated ones included.
        bytes: Memory traffic.
    """

    kernel: str
    instructions: float
    products: float
    bytes: float


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print, or print the table of an earlier count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, nargs="?", help="a program file")
    parser.add_argument("--json", type=Path, help="write the counts as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table from such a JSON instead of counting")
    parser.add_argument("--beside", type=Path, metavar="RUN", help="with --table: a JSON of benchmarks.gpu_suite")
    options = parser.parse_args(argv)
    if (options.program is None) == (options.table is None):
        parser.error("name a program file or --table FILE")
    if options.beside and not options.table:
        parser.error("--beside needs --table FILE")
    if options.table:
        document = json.loads(options.table.read_text())
    else:
        document = count(parse_program(options.program.read_bytes(), str(options.program)))
    if options.json:
        write_atomically(options.json, (json.dumps(document, indent=1) + "\n").encode())
    if options.beside:
        run = json.loads(options.beside.read_text())
        if (chip := chip_of(run["device"]["name"])) is None:
            parser.error(f"the model has no {run['device']['name']}, only {', '.join(one.name for one in CHIPS)}")
        print(comparison(document, chip, run), end="")
        return 0
    print(table(document), end="")
    return 0


def chip_of(device: str) -> Chip | None:
    """The device of ``CHIPS`` that the driver calls by a name."""
    return next((chip for chip in CHIPS if all(word in device for word in chip.name.split()[:2])), None)


def comparison(document: Mapping[str, Any], chip: Chip, run: Mapping[str, Any]) -> str:
    """The measured launches of a run of ``benchmarks.gpu_suite`` beside their bounds, as Markdown."""
    lines = ["| kernel | size | measured, us | bound, us | share | bound by |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for row in run["parts"]["launches"]["rows"]:
        height, width = row["size_hw"]
        bounds = bounds_ms(document, chip, row["name"], height * width)
        bound = max(bounds, key=lambda key: bounds[key])
        shown = f"{1e3 * row['ms']:.1f} | {1e3 * bounds[bound]:.1f} | {100 * bounds[bound] / row['ms']:.0f} % | {bound}"
        lines.append(f"| `{row['name']}` | {width}x{height} | {shown} |")
    return "\n".join(lines) + "\n"


def count(program: Program) -> dict[str, Any]:
    """Count the costs of every launch on every device of ``CHIPS`` that the program has kernels for.

    Returns:
        The document of the schema ``refusion-edge/gpu-model/1``.
    """
    works = frame_work(program.schedule, program.weights)
    costs: dict[int, list[dict[str, Any]]] = {}
    for chip in CHIPS:
        if chip.architecture in program.targets and chip.architecture not in costs:
            major, minor = divmod(chip.architecture, 10)
            device = Device(chip.name, f"{major}.{minor}", False, True, "99.9")
            binaries = choose_target(program, device).binaries
            code = {name: dump(binary, "-sass") for name, binary in binaries.items()}
            costs[chip.architecture] = []
            for work in works:
                tile, streams = binaries[work.kernel].tile, program.schedule.kernels[work.kernel].streams
                per_strip_row = streams * tile.warps / tile.columns
                kernel = program.schedule.kernels[work.kernel]
                nbytes = float(work.bytes)
                if kernel.source == "fast_convolutions":
                    instructions, products = layered_costs(code[work.kernel], tile.rows, layer_rows(kernel, tile))
                    nbytes += scratch_bytes(program.schedule, kernel, tile)
                else:
                    is_walk = kernel.grid == "strips"
                    instructions, products = row_costs(code[work.kernel], tile.rows) if is_walk else (0.0, 0.0)
                cost = Cost(work.kernel, instructions * per_strip_row, products * per_strip_row, nbytes)
                costs[chip.architecture].append(asdict(cost))
    counts = {f"{architecture}": count_kernels(program, architecture) for architecture in costs}
    launches = [launch.kernel for launch in program.schedule.launches]
    serial = [name for name, kernel in program.schedule.kernels.items() if kernel.grid == "streams"]
    return {
        "schema": SCHEMA,
        "versions": dict(program.model),
        "launches": launches,
        "serial": serial,
        "counts": counts,
        "costs": {f"{key}": rows for key, rows in costs.items()},
    }


def bounds_ms(document: Mapping[str, Any], chip: Chip, kernel: str, pixels: int) -> dict[str, float]:
    """Each of ``BOUNDS`` for one launch of a kernel.

    Args:
        document: The result of ``count``.
        chip: The device.
        kernel: Name of the kernel.
        pixels: Pixels of the image.
    """
    line = document["counts"][f"{chip.architecture}"][kernel]
    counts = at(line, pixels)
    per_ms = chip.clock_ghz * 1e6
    # A program runs on one multiprocessor, and there may be fewer of them than multiprocessors.
    rate = per_ms * min(chip.multiprocessors, counts.ctas)
    serial = 0.0
    if kernel in document["serial"]:
        serial = counts.instructions / counts.ctas / line["warps"] * _DEPENDENT_CLOCKS / per_ms
    return {
        "issue": counts.instructions / _SCHEDULERS / rate,
        "tensor": counts.products / chip.products_per_clock / rate,
        "shared": counts.wavefronts / rate,
        "L1": counts.sectors / _SECTORS_PER_CLOCK / rate,
        "memory": counts.sectors_once * _SECTOR_BYTES / (chip.gb_per_s * 1e6),
        "serial": serial,
        "launch": _LAUNCH_US / 1e3,
    }


def frame_ms(document: Mapping[str, Any], chip: Chip, pixels: int) -> float:
    """Time of a frame in the model."""
    return sum(max(bounds_ms(document, chip, kernel, pixels).values()) for kernel in document["launches"])


def row_costs(code: str, rows: int) -> tuple[float, float]:
    """Instructions and products of one warp for one row of its strip.

    Args:
        code: Disassembly of a kernel.
        rows: Rows of a strip, for a kernel whose rows the compiler unrolled.
    """
    names, walks = _walks(code)
    if not walks:
        return len(names) / rows, sum(map(_products, names)) / rows
    return float(sum(map(len, walks))), float(sum(_products(name) for body in walks for name in body))


def layered_costs(code: str, rows: int, layers: Sequence[int]) -> tuple[float, float]:
    """Instructions and products of one warp for one row of its strip, of a kernel that walks down it once for each layer.

    Args:
        code: Disassembly of a kernel.
        rows: Rows of pixels of a strip.
        layers: Rows that each layer walks, in order.

    Raises:
        ValueError: The code has another number of walks.
    """
    names, walks = _walks(code)
    if len(walks) != len(layers):
        raise ValueError(f"the code has {len(walks)} walks over rows instead of {len(layers)}; the compiler changed them")
    around = len(names) - sum(map(len, walks))
    pairs = list(zip(walks, layers, strict=True))
    instructions = around + sum(len(body) * times for body, times in pairs)
    products = sum(_products(name) * times for body, times in pairs for name in body)
    return instructions / rows, products / rows


def _walks(code: str) -> tuple[list[str], list[list[str]]]:
    """The instructions of a kernel, and those of each loop over rows."""
    instructions = [(int(found[1], 16), found[2], found[3]) for found in _INSTRUCTION.finditer(code)]
    bodies = []
    for address, name, operands in instructions:
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            bodies.append([one for at, one, _ in instructions if int(target[1], 16) <= at <= address])
    # Loops over strips, which some kernels begin with, neither store a pixel nor multiply matrices.
    walks = [body for body in bodies if any(name.startswith(("STG", "HMMA", "HGMMA", "UTCHMMA")) for name in body)]
    return [name for _, name, _ in instructions], walks


def _products(name: str) -> float:
    if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):
        return int(found[1]) * int(found[2]) * int(found[3]) / _THREADS_OF_A_GROUP
    return float(next((size for start, size in _PRODUCTS.items() if name.startswith(start)), 0))


def launch_ms(cost: Mapping[str, Any], chip: Chip, pixels: int) -> float:
    """Time of one launch in the model before this one, from an element of ``costs``."""
    clocks = max(cost["instructions"] / _SCHEDULERS, cost["products"] / chip.products_per_clock)
    on_chip_s = clocks * pixels / (chip.multiprocessors * chip.clock_ghz * 1e9)
    return 1e3 * max(on_chip_s, cost["bytes"] * pixels / (chip.gb_per_s * 1e9))


def table(document: Mapping[str, Any]) -> str:
    """The tables of the documentation, as Markdown: devices, and the launches on the first of them."""
    versions = ", ".join(f"{name} {text}" for name, text in document["versions"].items() if name in ("refusion-edge", "triton"))
    lines = [f"Model, not a measurement; counted in kernels of {versions}.", ""]
    sizes = [f"{width}x{height}" for height, width in SIZES_HW]
    lines.append("| device | " + " | ".join(f"{size}, ms | at 60 % | before" for size in sizes) + " |")
    lines.append("| --- | " + " | ".join(["---: | ---: | ---:"] * len(sizes)) + " |")
    chips = [chip for chip in CHIPS if f"{chip.architecture}" in document["costs"]]
    for chip in chips:
        cells = []
        for height, width in SIZES_HW:
            time, before = frame_ms(document, chip, height * width), older_frame_ms(document, chip, height * width)
            cells.append(f"{time:.2f} | {time / EFFICIENCY:.2f} | {before:.2f}")
        lines.append(f"| {chip.name} | " + " | ".join(cells) + " |")
    chip, pixels = chips[0], SIZES_HW[0][0] * SIZES_HW[0][1]
    lines += ["", f"| launch on {chip.name}, ms at {sizes[0]} | " + " | ".join(BOUNDS[:-1]) + " | bound by | wavefronts |"]
    lines.append("| --- |" + " ---: |" * len(BOUNDS[:-1]) + " --- | ---: |")
    for name in dict.fromkeys(document["launches"]):
        times, bounds = document["launches"].count(name), bounds_ms(document, chip, name, pixels)
        shown = " | ".join(f"{times * bounds[bound]:.2f}" for bound in BOUNDS[:-1])
        wavefronts = times * at(document["counts"][f"{chip.architecture}"][name], pixels).wavefronts / pixels
        lines.append(f"| {times} x `{name}` | {shown} | {max(bounds, key=lambda key: bounds[key])} | {wavefronts:.1f} |")
    return "\n".join(lines) + "\n"


def older_frame_ms(document: Mapping[str, Any], chip: Chip, pixels: int) -> float:
    """Time of a frame in the model before this one."""
    return sum(launch_ms(cost, chip, pixels) for cost in document["costs"][f"{chip.architecture}"])


if __name__ == "__main__":
    raise SystemExit(main())
