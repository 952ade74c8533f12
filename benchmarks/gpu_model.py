"""A model of the frame time on devices that have not been measured, from the instructions and bytes of the compiled kernels.

python -m benchmarks.gpu_model PROGRAM.rfx [--json FILE]    count, with the disassembler that comes with Triton
python -m benchmarks.gpu_model --table FILE                 print the table of docs/gpu.md from such a JSON

Build the program with ``refusion-edge build --task ir_vis --backend fused --arch sm_87,sm_89,sm_90,sm_110``; no GPU is needed.

For the network ``fast``, add ``--network fast --precision fp16``. The only launch with convolutions there walks down its strip
once for each of them, and computes some rows and columns twice; both are counted, as are the instructions around those walks,
and one write and one read of what lies between two convolutions.

Every launch takes the longest of three times: its instructions on the four schedulers of each multiprocessor, one each per
clock; its products on the tensor cores; its bytes through memory. A frame is the sum of its launches. Latencies, bank
conflicts, waves that do not fill the device, and launch overhead are left out, so the model is a lower bound. Caches are left
out as well; if one holds a whole image, memory may take less time. The table also shows the time at 60 % of these rates, which
is a guess.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernel_work import frame_work, layer_rows, scratch_bytes
from refusion_edge.backends.fused import choose_target
from refusion_edge.cuda.driver import Device
from refusion_edge.cuda.program import Program
from refusion_edge.cuda.program_file import parse_program
from refusion_edge.export.targets.cubins import dump
from refusion_edge.files import write_atomically

SCHEMA = "refusion-edge/gpu-model/1"
SIZES_HW = ((480, 640), (1024, 1280))
EFFICIENCY = 0.6
_SCHEDULERS = 4
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
    options = parser.parse_args(argv)
    if (options.program is None) == (options.table is None):
        parser.error("name a program file or --table FILE")
    if options.table:
        document = json.loads(options.table.read_text())
    else:
        document = count(parse_program(options.program.read_bytes(), str(options.program)))
    if options.json:
        write_atomically(options.json, (json.dumps(document, indent=1) + "\n").encode())
    print(table(document), end="")
    return 0


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
    return {"schema": SCHEMA, "versions": dict(program.model), "costs": {f"{key}": rows for key, rows in costs.items()}}


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
    """Time of one launch in the model."""
    clocks = max(cost["instructions"] / _SCHEDULERS, cost["products"] / chip.products_per_clock)
    on_chip_s = clocks * pixels / (chip.multiprocessors * chip.clock_ghz * 1e9)
    return 1e3 * max(on_chip_s, cost["bytes"] * pixels / (chip.gb_per_s * 1e9))


def table(document: Mapping[str, Any]) -> str:
    """The tables of the documentation, as Markdown: devices, and the launches on the first of them."""
    versions = ", ".join(f"{name} {text}" for name, text in document["versions"].items() if name in ("refusion-edge", "triton"))
    lines = [f"Model, not a measurement; counted in kernels of {versions}.", ""]
    sizes = [f"{width}x{height}" for height, width in SIZES_HW]
    lines.append("| device | " + " | ".join(f"{size}, ms | at 60 %" for size in sizes) + " |")
    lines.append("| --- | " + " | ".join(["---: | ---:"] * len(sizes)) + " |")
    chips = [chip for chip in CHIPS if f"{chip.architecture}" in document["costs"]]
    for chip in chips:
        cells = [f"{time:.2f} | {time / EFFICIENCY:.2f}" for time in _frame_times(document, chip)]
        lines.append(f"| {chip.name} | " + " | ".join(cells) + " |")
    chip, pixels = chips[0], SIZES_HW[0][0] * SIZES_HW[0][1]
    lines += ["", f"| launch on {chip.name} | ms at {sizes[0]} | bound by |", "| --- | ---: | --- |"]
    for name, cost, times in _by_kernel(document["costs"][f"{chip.architecture}"]):
        bounds = {
            "instructions": launch_ms({**cost, "products": 0, "bytes": 0}, chip, pixels),
            "tensor cores": launch_ms({**cost, "instructions": 0, "bytes": 0}, chip, pixels),
            "memory": launch_ms({**cost, "instructions": 0, "products": 0}, chip, pixels),
        }
        bound = max(bounds, key=lambda key: bounds[key])
        lines.append(f"| {times} x `{name}` | {times * launch_ms(cost, chip, pixels):.2f} | {bound} |")
    return "\n".join(lines) + "\n"


def _frame_times(document: Mapping[str, Any], chip: Chip) -> Iterator[float]:
    costs = document["costs"][f"{chip.architecture}"]
    for height, width in SIZES_HW:
        yield sum(launch_ms(cost, chip, height * width) for cost in costs)


def _by_kernel(costs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    names = [cost["kernel"] for cost in costs]
    for name in dict.fromkeys(names):
        cost = costs[names.index(name)]
        if cost["bytes"]:
            yield name, cost, names.count(name)


if __name__ == "__main__":
    raise SystemExit(main())
