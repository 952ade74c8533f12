"""Faults planted in the kernels and in their launches, one at a time: what sees them, the checker, the result, or nothing.

``python -m tests.kernels.emulator.planted_faults`` prints the table of all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from benchmarks.gpu_cases import RELATIVE_ERROR, Case, comparable, make_case
from refusion_edge.arrays import Array
from refusion_edge.kernels.emulator.decoder import decode
from refusion_edge.kernels.gpu.folding import FoldedWeights, fold
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet
from refusion_edge.kernels.gpu.schedule import make_schedule
from refusion_edge.kernels.gpu.simulated_device import DeviceMisuseError
from refusion_edge.network.parameters import PARAMETERS
from tests.kernels.emulator.launches import Outcome, decoded, fast_state, run_case, same_outputs

# Two strips across and two down, the last ones nearly empty, and one strip that is not full.
SIZES = ((34, 66), (5, 33))

Verdict = Literal["checker and result", "checker alone", "result alone", "no effect", "missed"]


def _more(by: int) -> Callable[[re.Match[str]], str]:
    return lambda found: f"{found[1]}+{int(found[2] or 0) + by}]"


MUTATIONS: dict[str, tuple[str, str | Callable[[re.Match[str]], str]]] = {
    "barrier removed": (r"bar\.sync \t?0;", ";"),
    "barrier of a warp removed": (r"bar\.warp\.sync \t?-1;", ";"),
    "fence of the proxy removed": (r"fence\.proxy\.async\.shared::cta;", ";"),
    "wgmma not waited for": (r"wgmma\.wait_group\.sync\.aligned \t?0;", ";"),
    "wgmma.fence removed": (r"wgmma\.fence\.sync\.aligned;", ";"),
    "shared address moved by a row of 16 bytes": (r"(\.shared[\w.:]* .*?\[%r\d+)(?:\+(\d+))?\]", _more(16)),
    "shared address moved by 4 bytes": (r"(st\.shared[\w.:]* .*?\[%r\d+)(?:\+(\d+))?\]", _more(4)),
    "global address moved by an element": (r"(\[ %rd\d+ \+ )0( \])", r"\g<1>4\2"),
    "exclusive or of the swizzle": (r"xor\.b32", "or.b32"),
    "halves of B swapped": (r"(mma\.sync.*?\}, \{.*?\}, \{ )(%r\d+), (%r\d+)( \})", r"\1\3, \2\4"),
    "rows of A swapped": (r"(mma\.sync.*?\}, \{ )(%r\d+), (%r\d+)(, )", r"\1\3, \2\4"),
    "ldmatrix not transposed": (r"x4\.trans", "x4"),
    "less to less or equal": (r"setp\.lt\.s(32|64)", r"setp.le.s\1"),
    "greater to less": (r"setp\.gt\.s32", "setp.lt.s32"),
    "guard inverted": (r"@%p", "@!%p"),
    "move removed": (r"\tmov\.[bu]32 \t?%r\d+, [^;{]+;", "\t;"),
    "arithmetic removed": (r"\t(?:add|mul|fma)[\w.]*f32 [^;]+;", "\t;"),
    "lane of a shuffle": (
        r"(shfl\.sync\.bfly\.b32 \t%r\d+, %r\d+, )(\d+)",
        lambda found: f"{found[1]}{16 if found[2] == '1' else int(found[2]) // 2}",
    ),
}
"""Changes of the PTX: what is found, and what takes its place."""

HOST_FAULTS = (
    "too little shared memory",
    "a column of strips missing",
    "a row of strips missing",
    "one strip too many",
    "height and width swapped",
    "an output too short",
    "an input too short",
    "an input that was never written",
)
"""Faults of whoever launches a kernel."""

EXPLANATIONS = {
    "less to less or equal": "at this size, no lane is exactly at the bound",
    "greater to less": "the bound is that of another size, or the value is not used",
    "guard inverted": "the value that is loaded or not is not used, both ways lead to the same, or a sum is nearly the same",
    "move removed": "the initial value of a load that always takes place",
    "exclusive or of the swizzle": "the two bit fields do not overlap, and then both are the same",
    "shared address moved by a row of 16 bytes": "store and load are at other bytes that nobody else uses",
    "shared address moved by 4 bytes": "the same, or a value nearly the same as that of its neighbor",
    "lane of a shuffle": "a sum over lanes that is wrong by less than the tolerance",
    "arithmetic removed": "a sum that is wrong by less than the tolerance, or the register already holds the value",
    "halves of B swapped": "a sum that is wrong by less than the tolerance",
    "rows of A swapped": "rows of zeros, or a sum that is wrong by less than the tolerance",
    "ldmatrix not transposed": "a sum that is wrong by less than the tolerance",
    "global address moved by an element": "a value that differs from its neighbor by less than the tolerance",
    "wgmma.fence removed": "no register was written since the last one",
    "wgmma not waited for": "the next product adds to the same accumulators, and a later wait is for both",
    "fence of the proxy removed": "nothing was written to shared memory since the last one",
    "barrier removed": "on sm_90, Triton writes some barriers that order nothing",
}
"""Why a fault of a class may change nothing that anybody could see, or too little."""


@functools.cache
def _folded() -> FoldedWeights:
    draw = np.random.default_rng(7)
    state = {
        name: (
            draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            if len(shape) == 4
            else 1 + 0.1 * draw.standard_normal(shape)
        )
        for name, shape in PARAMETERS.items()
    }
    return fold({name: values.astype(np.float32) for name, values in state.items()})


@functools.cache
def _case(architecture: int, name: str, size_hw: tuple[int, int], kernels: KernelSet) -> Case:
    folded = _folded() if kernels is REFUSION else kernels.fold(fast_state())
    return make_case(name, size_hw, "float16", folded, kernels.tiles(architecture), kernels=kernels)


@functools.cache
def _good(architecture: int, name: str, size_hw: tuple[int, int], kernels: KernelSet) -> Outcome:
    return run_case(_case(architecture, name, size_hw, kernels), *decoded(architecture, name, kernels))


def _is_wrong(kernel: Any, got: Mapping[str, Array], good: Mapping[str, Array]) -> bool:
    # What is compared is the kernel without the fault, which other tests compare with float64.
    for name, expected in good.items():
        pair = [comparable(kernel, name, values).astype(np.float64) for values in (got[name], expected)]
        with np.errstate(all="ignore"):
            off = float(np.abs(pair[0] - pair[1]).max())
        limit = 1.0 if name == "levels_ptr" else RELATIVE_ERROR["float16"] * float(np.abs(pair[1]).max())
        # Not "off > limit", which is false for NaN.
        if not off <= limit:
            return True
    return False


def verdict(case: Case, good: Outcome, outcome: Outcome) -> Verdict:
    """Who sees the difference between two outcomes."""
    wrong = _is_wrong(case.kernel, outcome.outputs, good.outputs)
    if outcome.is_suspicious:
        return "checker and result" if wrong else "checker alone"
    if wrong:
        return "result alone"
    return "no effect" if same_outputs(outcome.outputs, good.outputs) else "missed"


def places(text: str, label: str) -> list[re.Match[str]]:
    """Where in a text a fault of a class can be planted."""
    return list(re.finditer(MUTATIONS[label][0], text))


def mutated(text: str, label: str, place: re.Match[str]) -> str:
    """A text with one fault."""
    new = MUTATIONS[label][1]
    return text[: place.start()] + (place.expand(new) if isinstance(new, str) else new(place)) + text[place.end() :]


def plant(architecture: int, name: str, label: str, place: re.Match[str], kernels: KernelSet = REFUSION) -> Verdict:
    """Run a kernel of a network with one fault."""
    _, binary = decoded(architecture, name, kernels)
    case, good = _case(architecture, name, SIZES[0], kernels), _good(architecture, name, SIZES[0], kernels)
    kernel = decode(mutated(binary.image.decode(), label, place))
    # A loop that no longer ends is stopped.
    budget = 4 * int(good.result.counts[:, 0].sum())
    return verdict(case, good, run_case(case, kernel, binary, budget=budget))


def _shifted(case: Case, name: str, by: int) -> Case:
    """A case with an operand of other length."""
    operand = case.operands[name]
    return dataclasses.replace(case, operands={**case.operands, name: operand[: operand.size - by].copy()})


def plant_on_host(
    architecture: int, name: str, label: str, size_hw: tuple[int, int] = SIZES[0]
) -> Verdict | Literal["refused", "does not apply"]:
    """Launch a kernel wrongly."""
    kernel, binary = decoded(architecture, name)
    case, good = _case(architecture, name, size_hw, REFUSION), _good(architecture, name, size_hw, REFUSION)
    grid = case.kernel.launch_grid(case.tile, case.size_hw)
    options: dict[str, Any] = {}
    changed = case
    is_strips = case.kernel.grid == "strips"
    buffers = [one.name for one in case.kernel.parameters if not isinstance(case.operands[one.name], int) and not one.written]
    if label == "too little shared memory":
        if not binary.shared_bytes:
            return "does not apply"
        options["shared_bytes"] = binary.shared_bytes - 16
    elif label == "a column of strips missing":
        if grid[0] == 1:
            return "does not apply"
        options["grid"] = (grid[0] - 1, *grid[1:])
    elif label == "a row of strips missing":
        if not is_strips or grid[1] == 1:
            return "does not apply"
        options["grid"] = (grid[0], grid[1] - 1, grid[2])
    elif label == "one strip too many":
        options["grid"] = (grid[0] + 1, *grid[1:])
    elif label == "height and width swapped":
        if "height" not in case.operands:
            return "does not apply"
        changed = dataclasses.replace(
            case, operands={**case.operands, "height": case.operands["width"], "width": case.operands["height"]}
        )
    elif label == "an output too short":
        changed = _shifted(case, case.written[0], 1)
    elif label == "an input too short":
        changed = _shifted(case, buffers[0], 1)
    else:
        options["undefined"] = buffers[0]
    try:
        outcome = run_case(changed, kernel, binary, budget=4 * int(good.result.counts[:, 0].sum()), **options)
    except DeviceMisuseError:
        return "refused"
    if outcome.is_suspicious:
        return "checker alone"
    return verdict(case, good, outcome)


def chosen(
    architecture: int, most: int, names: tuple[str, ...] = (), kernels: KernelSet = REFUSION
) -> Iterator[tuple[str, str, re.Match[str]]]:
    """Up to some places of each class in each kernel, evenly spread: kernel, class, place."""
    for name in names or tuple(make_schedule().kernels):
        text = decoded(architecture, name, kernels)[1].image.decode()
        for label in MUTATIONS:
            found = places(text, label)
            step = max(1, -(-len(found) // most))
            for place in found[step // 2 :: step]:
                yield name, label, place


def main(argv: list[str] | None = None) -> int:
    """Plant faults and print who saw them."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.emulator.planted_faults", description=main.__doc__)
    parser.add_argument("--arch", type=int, default=87, help="10 times the compute capability (default: %(default)s)")
    parser.add_argument("--most", type=int, default=3, help="faults of a class in a kernel (default: %(default)s)")
    parser.add_argument("--kernels", default="", help="kernels, separated by commas (default: all)")
    options = parser.parse_args(argv)
    names = tuple(filter(None, options.kernels.split(",")))
    table: dict[str, Counter[str]] = {}
    for name, label, place in chosen(options.arch, options.most, names):
        seen = plant(options.arch, name, label, place)
        table.setdefault(label, Counter())[seen] += 1
        if seen in ("missed", "no effect"):
            line = place.string.count("\n", 0, place.start()) + 1
            print(f"{seen:10} {label:42} {name} line {line}", flush=True)
    for name in names or tuple(make_schedule().kernels):
        for label in HOST_FAULTS:
            table.setdefault(label, Counter())[plant_on_host(options.arch, name, label)] += 1
    for label, verdicts in table.items():
        print(
            f"{label:44}{sum(verdicts.values()):5} " + ", ".join(f"{count} {seen}" for seen, count in sorted(verdicts.items()))
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
