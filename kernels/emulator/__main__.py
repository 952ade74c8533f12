"""Execute a frame of a program file without a GPU, and print what the checker found and what was counted."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refusion_edge.arrays import Float32Array
from refusion_edge.backends.fused import FusedBackend
from refusion_edge.cuda.program import Program, Schedule
from refusion_edge.cuda.program_file import parse_program, program_bytes
from refusion_edge.errors import BackendError, BundleError, RefusionError, UsageError
from refusion_edge.export.targets.ptx import with_ptx
from refusion_edge.files import read_file, write_atomically
from refusion_edge.images.samples import sample_paths
from refusion_edge.kernels.emulator.compiled import load_module
from refusion_edge.kernels.emulator.counters import Counters, by_kernel, count
from refusion_edge.kernels.emulator.device import EmulatedDevice
from refusion_edge.kernels.emulator.findings import Finding, faults
from refusion_edge.kernels.emulator.launch import Result
from refusion_edge.kernels.gpu.schedule import fuse_reference
from refusion_edge.machine import parse_architectures, usable_cores
from refusion_edge.sizes import check_size, parse_size

_MOST_BYTES = 256 << 20
_LIMIT_S = 120.0
# In float64 the references of a larger frame would take longer than the frame.
_MOST_COMPARED_PIXELS = 640 * 480


def main(argv: list[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m refusion_edge.kernels.emulator",
        description="Execute the PTX of one frame of a program file on the processor, through the back end fused. The exit "
        "status is 1 if the checker finds a fault.",
    )
    parser.add_argument("program", type=Path, help="program file, written by 'refusion-edge build --backend fused'")
    parser.add_argument("--size", default="48x64", metavar="HxW", help="height and width of the frame (default: %(default)s)")
    parser.add_argument("--arch", metavar="sm_NN", help="which of the program's architectures (default: the lowest)")
    parser.add_argument("--json", metavar="FILE", help="also write the result as JSON; - writes it to standard output instead")
    parser.add_argument("--no-check", action="store_true", help="leave out races and undefined values, which is faster")
    parser.add_argument("--backward", action="store_true", help="start with the last CTA and the last warp")
    parser.add_argument(
        "--limit-s",
        type=float,
        default=_LIMIT_S,
        metavar="S",
        help="refuse a frame that would take longer (default: %(default)g)",
    )
    options = parser.parse_args(argv)
    try:
        document, text = _run(options)
        if options.json and options.json != "-":
            write_atomically(Path(options.json), f"{json.dumps(document, indent=1)}\n".encode())
    except RefusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(document, indent=1) if options.json == "-" else text)
    return 1 if any(not finding["is_harmless"] for finding in document["findings"]) else 0


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    load_module()
    size_hw = parse_size(options.size)
    if size_hw is None:
        raise UsageError("a frame has one size", "write --size 48x64", got=options.size)
    check_size(size_hw)
    wanted = parse_architectures(options.arch) if options.arch else ()
    if len(wanted) > 1:
        raise UsageError(f"--arch names {len(wanted)} architectures", "name one", expected=1, got=len(wanted))
    data = read_file(options.program, kind="program file", most_bytes=_MOST_BYTES, error=BundleError)
    program = parse_program(data, options.program.name)
    architecture = wanted[0] if wanted else min(program.targets)
    program = with_ptx(program, architecture, jobs=usable_cores())
    device = EmulatedDevice(program, architecture, check=not options.no_check, backward=options.backward)
    planes = _planes(size_hw)
    document: dict[str, Any] = {
        "program": options.program.name,
        "model": dict(program.model),
        "architecture": f"sm_{architecture}",
        "size_hw": list(size_hw),
        "checked": not options.no_check,
    }
    try:
        with FusedBackend(program_bytes(program), options.program.name, device) as engine:
            # What the self-test took says what a frame will take.
            _require_time(program, device.results, size_hw, options.limit_s)
            at_opening = len(device.results)
            fused = engine.fuse(planes[:1, None], planes[1:, None])[0, 0].copy()
    except BackendError as error:
        # The self-test fails where a kernel computes wrongly, and the findings say why.
        document |= {"error": str(error), "findings": _as_json(device.findings)}
        if not faults(device.findings):
            raise
        return document, "\n".join([f"the program does not pass its self-test: {error}", *_told(device.findings)])
    results = device.results[at_opening:]
    document |= {
        "seconds": sum(result.seconds for _, result in results),
        "largest_difference_from_float64": _difference(program, planes, fused),
        "findings": _as_json(device.findings),
        "frame": count(result for _, result in results).to_json(),
        "kernels": {name: counters.to_json() for name, counters in by_kernel(results).items()},
    }
    return document, _report(document, by_kernel(results), device.findings)


def _as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [{**finding.to_json(), "is_harmless": finding.is_harmless} for finding in findings]


def _told(findings: Sequence[Finding]) -> list[str]:
    return [f"FAULT {finding}" for finding in faults(findings)] or ["no fault found"]


def _planes(size_hw: tuple[int, int]) -> Float32Array:
    """The first sample pair at this size, (2, H, W) float32 in [0, 1]."""
    pair = sample_paths("ir_vis")[0]
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (pair.a, pair.b)]
    resized = [cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA) for image in images if image is not None]
    return np.stack(resized).astype(np.float32) / np.float32(255)


def _require_time(program: Program, results: Sequence[tuple[str, Result]], size_hw: tuple[int, int], limit_s: float) -> None:
    (target,) = program.targets.values()
    test_hw = program.self_test.fused.shape

    def strips(name: str, size: tuple[int, int]) -> int:
        # A kernel that has one CTA for a stream walks over the strips of another, which it is told the number of.
        arguments = (argument for launch in program.schedule.launches if launch.kernel == name for argument in launch.arguments)
        walked = next((argument.name for argument in arguments if argument.kind == "strips"), name)
        across, down = target.tiles[name if program.schedule.kernels[name].grid == "strips" else walked].strips(size)
        return across * down

    estimate_s = sum(result.seconds * strips(name, size_hw) / strips(name, test_hw) for name, result in results)
    if estimate_s > limit_s:
        raise UsageError(
            f"a frame of {size_hw[1]}x{size_hw[0]} would take about {estimate_s:.0f} s here, and the limit is {limit_s:g} s",
            f"take a smaller --size, or allow it with --limit-s {math.ceil(2 * estimate_s)}",
            expected=limit_s,
            got=estimate_s,
        )


def _difference(program: Program, planes: Float32Array, fused: Float32Array) -> float | None:
    if fused.size > _MOST_COMPARED_PIXELS:
        return None
    weights = {name: array.astype(np.float64) for name, array in program.weights.items()}
    exact = fuse_reference(_in_float64(program.schedule), weights, planes.astype(np.float64))["fused"]
    return float(np.abs(fused - exact).max())


def _in_float64(schedule: Schedule) -> Schedule:
    """The same launches with every floating dtype replaced."""

    def wide(dtype: str) -> str:
        return dtype.replace("float16", "float64").replace("float32", "float64")

    kernels = {
        name: replace(kernel, parameters=tuple(replace(one, type=wide(one.type)) for one in kernel.parameters))
        for name, kernel in schedule.kernels.items()
    }
    buffers = {name: replace(buffer, dtype=wide(buffer.dtype)) for name, buffer in schedule.buffers.items()}
    return replace(schedule, kernels=kernels, buffers=buffers)


def _report(document: Mapping[str, Any], kernels: Mapping[str, Counters], findings: Sequence[Finding]) -> str:
    height, width = document["size_hw"]
    frame, pixels = document["frame"], height * width
    lines = [
        f"{document['program']} for {document['architecture']}, {width}x{height}: {frame['launches']} launches, "
        f"{frame['warp_instructions']} warp instructions, {document['seconds']:.1f} s",
    ]
    if (difference := document["largest_difference_from_float64"]) is not None:
        lines.append(f"largest difference from the same network in float64: {difference:.1e}")
    lines += ["", "for each pixel:", ""]
    heads = ("kernel", "launches", "instructions", "tensor", "shared", "conflicts", "sectors", "once", "barriers")
    lines.append(f"{heads[0]:22}" + "".join(f"{head:>13}" for head in heads[1:]))
    for name, counters in {**kernels, "frame": Counters(**frame)}.items():
        values = (
            counters.warp_instructions,
            counters.by_class["tensor"],
            counters.shared_wavefronts,
            counters.shared_wavefronts - counters.shared_wavefronts_least,
            counters.sectors_read + counters.sectors_written,
            counters.sectors_read_once + counters.sectors_written_once,
            counters.barriers,
        )
        lines.append(f"{name:22}{counters.launches:13}" + "".join(f"{value / pixels:13.2f}" for value in values))
    lines += [
        "",
        "instructions, tensor, barriers: issued by warps. shared: wavefronts of 128 bytes, and those due to bank conflicts.",
        "sectors: of 32 bytes of global memory, as asked for by warps, and each counted once a launch.",
        "",
    ]
    if harmless := len(findings) - len(faults(findings)):
        lines.append(f"{harmless} instructions store the same value from several threads, which changes no result.")
    if not document["checked"]:
        lines.append("Races and undefined values were not looked for (--no-check).")
    return "\n".join([*lines, *_told(findings)])


if __name__ == "__main__":
    raise SystemExit(main())
