"""Count the instructions per pixel of the native kernels on aarch64, in an emulator, against the least that the network needs.

Run as ``python -m benchmarks.native_counts`` from the repository's root. It needs CMake, a C compiler, and on Debian
``g++-aarch64-linux-gnu`` and ``qemu-user``. The kernels are cross-compiled with debug information, which does not change the
code, and fuse one pair on one thread under ``qemu-aarch64``. A plugin (``block_counts.c``) counts how often each block of
instructions runs, and the debug information says which operation an instruction belongs to. Counts are exact and do not
depend on the load of the machine. They say nothing about time: a processor runs several instructions at once.

Multiply-adds are counted by hand from the layout of the networks, per pixel; ``ideal`` is a quarter of them, as a NEON
register has four lanes, or, in half precision and in bf16, an eighth: it has eight lanes, or pairs in four lanes. ``fmla`` are
the multiply-add instructions that ran, in bf16 ``bfdot``, too; ``stack`` are those loads and stores that use the stack pointer,
most of them registers that were spilled. Only functions of the kernels are counted, not what they call (such as ``memset``),
nor packing weights. The default sizes are low, so that the emulator is done in minutes, and as wide as a common image: the
strips of columns, and what their overlap costs, depend on the width.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refusion_edge.arrays import State
from refusion_edge.network.checkpoint import Checkpoint, write_safetensors
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.parameters import DIM, NUM_BLOCKS, NUM_HEADS, PARAMETERS

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 640
CROSS = "aarch64-linux-gnu-"
TOOLS = ("cmake", "cc", f"{CROSS}g++", f"{CROSS}objdump", f"{CROSS}addr2line", "qemu-aarch64")

# Which operation an instruction belongs to: the first pattern that a function matches, from the innermost inlined one out.
_OPERATIONS = {
    r"gelu|normal_share": "GELU",
    r"depthwise": "depthwise",
    r"layer_norm": "layer norm",
    r"accumulate": "query-key products",
    r"pointwise": "1x1",
    r"mix_rows": "mixes of rows",
    r"convolve_block": "convolutions",
    r"write_block": "last convolution",
}
# The same where the outermost function says more.
_ENDS = {
    ("lift", "1x1"): "first convolutions",
}
_COUNTED = re.compile(r"refusion::(scalar|sse2|avx2|avx512|neon)(_\w+)?::")
# F(4, 3): six mixes with three taps each make four rows, instead of nine taps for each row.
_WINOGRAD = (6 * 3) / (4 * 9)
_INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t([a-z0-9.]+)\s*([^/]*)")


@dataclass(frozen=True, slots=True)
class Case:
    """What is counted.

    Attributes:
        height: Height of the images by default.
        layout: Layout of the network ``fast``; None for the paper's network.
        precision: What it is computed in.
        lanes: Multiply-adds of one instruction in this precision.
    """

    height: int
    layout: FastLayout | None = None
    precision: str = "fp32"
    lanes: int = 4


CASES = {
    "refusion": Case(16),
    "fast": Case(64, FastLayout()),
    "fast-fp16": Case(64, FastLayout(), "fp16", 8),
    "fast-bf16": Case(64, FastLayout(), "bf16", 8),
    "fast-16": Case(64, FastLayout(channels=16)),
    "fast-16-fp16": Case(64, FastLayout(channels=16), "fp16", 8),
}


@dataclass(slots=True)
class Executed:
    """Instructions that ran, by what they do.

    Attributes:
        fmla: Multiply-adds of vectors, of single numbers or of pairs.
        loads: Loads from memory.
        stores: Stores to memory.
        others: All others.
        stack: Those of the loads and stores that use the stack pointer.
    """

    fmla: int = 0
    loads: int = 0
    stores: int = 0
    others: int = 0
    stack: int = 0

    @property
    def total(self) -> int:
        """All instructions."""
        return self.fmla + self.loads + self.stores + self.others

    def add(self, mnemonic: str, operands: str, times: int) -> None:
        """Count an instruction that ran ``times`` times."""
        moved = mnemonic.startswith(("ld", "st"))
        if mnemonic in ("fmla", "fmls", "bfdot"):
            self.fmla += times
        elif not moved:
            self.others += times
        elif mnemonic.startswith("ld"):
            self.loads += times
        else:
            self.stores += times
        if moved and "[sp" in operands:
            self.stack += times


def main() -> int:
    """Print a table per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    heights = ", ".join(f"{case.height} for {name}" for name, case in CASES.items())
    parser.add_argument("--height", type=int, help=f"of the images (default: {heights})")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"of the images (default: {WIDTH})")
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES), help="16: channels (default: all)")
    parser.add_argument("--build", type=Path, default=ROOT / "build/aarch64-counts", help="folder of the build")
    options = parser.parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} not found; install cmake, gcc, g++-aarch64-linux-gnu and qemu-user")
    program, plugin = build(options.build)
    instructions = disassemble(program)
    for name, case in ((name, CASES[name]) for name in options.networks):
        height, width = options.height or case.height, options.width
        runs = run(program, plugin, case, (height, width))
        executed = by_operation(instructions, runs, inlined_functions(program, runs))
        print(f"{name}, {height}x{width}, {case.precision} on neon, one thread, per pixel:")
        print(table(executed, multiply_adds(case.layout), height * width, case.lanes))
    return 0


def multiply_adds(layout: FastLayout | None) -> dict[str, float]:
    """Multiply-adds per pixel by operation, counted from the layout of ``fast``; None for the paper's network."""
    if layout is not None:
        return {"convolutions": layout.multiplications * _WINOGRAD}
    shapes = {name: shape for name, shape in PARAMETERS.items() if len(shape) == 4}

    def weights(kind: tuple[int, ...], *, at_end: str = "") -> float:
        return float(sum(np.prod(shape) for name, shape in shapes.items() if shape[1:] == kind and name.startswith(at_end)))

    pointwise = sum(np.prod(shape) for shape in shapes.values() if shape[2:] == (1, 1))
    first = weights((1, 3, 3), at_end="project_in")
    # Of each head the products of all its queries and keys, and the squares of both. Channels, channels of a head:
    blocks = [(DIM, DIM // NUM_HEADS)] * 2 * (NUM_BLOCKS + 1) + [(2 * DIM, 2 * DIM // NUM_HEADS)] * NUM_BLOCKS
    return {
        "first convolutions": first,
        "1x1": float(pointwise),
        "depthwise": weights((1, 3, 3)) - first,
        "query-key products": float(sum(channels * (of_head + 2) for channels, of_head in blocks)),
        "convolutions": weights((2 * DIM, 3, 3)) * _WINOGRAD,
        "last convolution": weights((DIM, 3, 3)),
    }


def build(folder: Path) -> tuple[Path, Path]:
    """Compile the program that fuses, with the kernels in it, and the plugin; returns the paths of both."""
    library, plugin, program = (folder / name for name in ("librefusion_edge.a", "block_counts.so", "fuse"))
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / '.ci/aarch64.cmake'}"
    _call("cmake", "-S", ROOT, "-B", folder, toolchain, "-DREFUSION_EDGE_EXAMPLE=OFF", "-DCMAKE_CXX_FLAGS=-g")
    _call("cmake", "--build", folder, "--target", "refusion_edge_static", "--parallel", "2")
    include = ROOT / "kernels/library/csrc/include"
    # Static and at fixed addresses, so that those that run are those of the file.
    options = ("-std=c++17", "-O2", "-static", "-no-pie", "-I", include)
    _call(f"{CROSS}g++", *options, ROOT / "examples/fuse_pgm.cpp", library, "-o", program)
    _call("cc", "-shared", "-fPIC", "-O2", Path(__file__).with_name("block_counts.c"), "-o", plugin)
    return program, plugin


def run(program: Path, plugin: Path, case: Case, size_hw: tuple[int, int]) -> Counter[int]:
    """Fuse a random pair in the emulator; returns how often the instruction at each address ran."""
    height, width = size_hw
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        images = [Path(name) / f"{image}.pgm" for image in ("a", "b", "fused")]
        for path in images[:2]:
            path.write_bytes(b"P5\n%d %d\n255\n" % (width, height) + draw.integers(0, 256, (height, width), np.uint8).tobytes())
        counts = Path(name) / "counts.txt"
        weights = Path(name) / "weights.safetensors"
        write_safetensors(weights, Checkpoint("ir_vis", random_state(case.layout)))
        words = (program, weights, *images, "1", case.precision)
        _call("qemu-aarch64", "-plugin", plugin, "-d", "plugin", "-D", counts, *words)
        return read_counts(counts.read_text().splitlines())


def random_state(layout: FastLayout | None) -> State:
    """Parameters of a network: what runs does not depend on their values."""
    draw = np.random.default_rng(1)
    shapes = PARAMETERS if layout is None else layout.shapes
    return {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def read_counts(lines: Iterable[str]) -> Counter[int]:
    """How often each instruction ran, from the lines of the plugin: address of a block, its instructions, its runs."""
    runs: Counter[int] = Counter()
    for line in lines:
        address, instructions, times = line.split()
        for i in range(int(instructions)):
            runs[int(address, 16) + 4 * i] += int(times)
    return runs


def disassemble(program: Path) -> dict[int, tuple[str, str]]:
    """Mnemonic and operands at every address of a program."""
    text = _call(f"{CROSS}objdump", "-d", "--no-show-raw-insn", program)
    return {int(found[1], 16): (found[2], found[3]) for line in text.splitlines() if (found := _INSTRUCTION.match(line))}


def inlined_functions(program: Path, addresses: Iterable[int], tools: str = CROSS) -> dict[int, list[str]]:
    """Functions that every address lies in, the innermost inlined one first; ``tools``: what names of tools begin with."""
    chains: dict[int, list[str]] = {}
    asked = "\n".join(f"{address:x}" for address in addresses)
    lines = _call(f"{tools}addr2line", "-a", "-f", "-i", "-C", "-e", program, asked=asked).splitlines()
    chain: list[str] = []
    is_function = True
    for line in lines:  # an address, then function and place in turns
        if line.startswith("0x"):
            chain = chains.setdefault(int(line, 16), [])
            is_function = True
            continue
        if is_function:
            chain.append(line)
        is_function = not is_function
    return chains


def operation_of(functions: Sequence[str]) -> str | None:
    """The operation that an instruction belongs to, given its functions from the innermost out; None outside the kernels."""
    if not _COUNTED.search(functions[-1]):
        return None
    matches = (name for function in functions for pattern, name in _OPERATIONS.items() if re.search(pattern, function))
    found = next(matches, "rest")
    outermost = functions[-1].split("(")[0].rsplit("::", 1)[-1]
    return _ENDS.get((outermost, found), found)


def by_operation(
    instructions: Mapping[int, tuple[str, str]], runs: Mapping[int, int], functions: Mapping[int, Sequence[str]]
) -> dict[str, Executed]:
    """Add up what ran by operation."""
    executed: dict[str, Executed] = {}
    for address, times in runs.items():
        operation = operation_of(functions[address])
        if operation is not None:
            executed.setdefault(operation, Executed()).add(*instructions[address], times)
    return executed


def table(executed: Mapping[str, Executed], needed: Mapping[str, float], pixels: int, lanes: int) -> str:
    """The rows of a table in Markdown, per pixel, and their sum; ``needed`` are the multiply-adds of a pixel."""
    rows = [
        "| operation | multiply-adds | ideal | fmla | loads | stores | others | stack | all | all / ideal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = sorted(executed, key=lambda name: -executed[name].total)
    total = Executed(*(sum(getattr(each, field) for each in executed.values()) for field in Executed.__slots__))
    lines = [(name, executed[name], needed.get(name, 0.0)) for name in names]
    for name, each, work in [*lines, ("sum", total, sum(needed.values()))]:
        ideal = work / lanes
        counts = (each.fmla, each.loads, each.stores, each.others, each.stack, each.total)
        figures = [f"{work:.0f}", f"{ideal:.0f}"] if work else ["", ""]
        figures += [f"{count / pixels:.1f}" for count in counts]
        figures.append(f"{each.total / pixels / ideal:.2f}" if work else "")
        rows.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(rows)


def _call(*words: str | Path, asked: str | None = None) -> str:
    done = subprocess.run([str(word) for word in words], input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{words[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
