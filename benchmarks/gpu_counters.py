"""The counters of a device, read by Nsight Compute (``ncu``), next to those of the emulator, launch by launch.

python -m benchmarks.gpu_counters FOLDER [--json FILE]
python -m benchmarks.gpu_counters FOLDER --csv FILE [--json FILE]

FOLDER comes from ``python -m benchmarks.gpu_emulator record FOLDER``. Needs a GPU whose counters this user may read; with
``--csv``, it only reads what ncu wrote elsewhere with the command that is printed. Counted are

    instructions       smsp__inst_executed: machine instructions that warps issue; the emulator counts those of the PTX and
                       scales them by the length of both
    wavefronts         l1tex__data_pipe_lsu_wavefronts_mem_shared: passes through shared memory
    sectors            l1tex__t_sectors_pipe_lsu_mem_global_op_ld and _st: sectors of 32 bytes that warps ask global memory for
    ctas               from the grid, which shows that both tell of the same launch

The exit code is 1 if wavefronts, sectors or CTAs differ by more than 2 %; instructions are only shown.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_emulator import Recording, load
from refusion_edge.cuda.program import Program
from refusion_edge.errors import BackendError, InputError, MissingDependencyError, RefusionError
from refusion_edge.files import write_atomically

SCHEMA = "refusion-edge/gpu-counters/1"
METRICS = {
    "smsp__inst_executed.sum": "instructions",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "wavefronts",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "sectors",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum": "sectors",
}
"""Counters of ncu, and the field of ``benchmarks.gpu_counts.LaunchCounts`` that each is a part of."""

COUNTED = ("instructions", "wavefronts", "sectors", "ctas")
_COMPARED = ("wavefronts", "sectors", "ctas")
_TOLERANCE = 0.02
_TIMEOUT_S = 500
_NO_PERMISSION = "ERR_NVGPUCTRPERM"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch, as ncu saw it.

    Attributes:
        kernel: Name of the function.
        counts: By name in ``COUNTED``; a counter that the device does not have is absent.
    """

    kernel: str
    counts: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Profile and compare, or compare a stored profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings of the emulator")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="read what ncu wrote into this file instead of running it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON")
    options = parser.parse_args(argv)
    try:
        recorded = [(program, recording) for program, _, recording in load(options.folder)]
        rows = beside(recorded, parse(_text(options.csv) if options.csv else profile(options.folder)))
        if options.json:
            document = {"schema": SCHEMA, "rows": rows}
            write_atomically(options.json, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    except RefusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(rows), end="")
    return 0 if all(row["good"] for row in rows) else 1


def command(folder: Path, report: Path) -> list[str]:
    """The command that profiles the recorded frames.

    Args:
        folder: The recordings.
        report: Where ncu writes its CSV.
    """
    return [
        "ncu", "--csv", "--page", "details", "--print-units", "base", "--log-file", str(report), "--metrics", ",".join(METRICS),
        sys.executable, "-m", "benchmarks.gpu_emulator", "frame", str(folder),
    ]  # fmt: skip


def profile(folder: Path) -> str:
    """Profile the recorded frames; returns the CSV.

    Raises:
        MissingDependencyError: ncu is not installed.
        BackendError: It failed, or this user may not read the counters.
    """
    if not shutil.which("ncu"):
        raise MissingDependencyError("ncu is not on the path", "install Nsight Compute, which comes with the CUDA toolkit")
    with tempfile.TemporaryDirectory(prefix="ncu-") as scratch:
        report = Path(scratch, "ncu.csv")
        words = command(folder, report)
        print(" ".join(words), flush=True)
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        text = report.read_text(errors="replace") if report.is_file() else ""
        said = text + done.stdout + done.stderr
        if _NO_PERMISSION in said:
            raise BackendError(
                f"this user may not read the counters of the device ({_NO_PERMISSION})",
                "load the driver with NVreg_RestrictProfilingToAdminUsers=0, or run as root",
            )
        if done.returncode:
            raise BackendError(f"ncu ended with {done.returncode}: {(said.strip().splitlines() or [''])[-1]}")
        return text


def parse(text: str) -> list[Launch]:
    """Read the CSV of ncu: a line for each launch and counter, among lines that tell of its progress.

    Raises:
        InputError: It is something else.
    """
    lines = text.splitlines()
    head = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        raise InputError("there is no table in the output of ncu", "run it with --csv --page details")
    launches: dict[int, Launch] = {}
    for row in csv.DictReader(line for line in lines[head:] if line.startswith('"')):
        try:
            launch = launches.setdefault(
                int(row["ID"]), Launch(_function(row["Kernel Name"]), {"ctas": _ctas(row["Grid Size"])})
            )
            name, value = row["Metric Name"], _number(row["Metric Value"])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"a line of ncu's table cannot be read ({error!r})", "run it with --csv --page details") from None
        if name in METRICS and value is not None:
            launch.counts[METRICS[name]] = launch.counts.get(METRICS[name], 0.0) + value
    return [launches[index] for index in sorted(launches)]


def beside(recorded: Sequence[tuple[Program, Recording]], launches: Sequence[Launch]) -> list[Row]:
    """Put the launches of each recorded frame next to those of the emulator.

    Args:
        recorded: Each program and frame, in the order in which they ran; each engine fuses its self-test before the frame.
        launches: As the device ran them.

    Returns:
        A row for each launch: each of ``COUNTED`` as [device or None, emulator], and whether it is ``good``.

    Raises:
        InputError: These are the launches of something else, or a counter is missing everywhere.
    """
    rows: list[Row] = []
    at = 0
    for program, recording in recorded:
        schedule, symbols = program.schedule, _symbols(program)
        number = len(schedule.launches)
        found = launches[at + number : at + 2 * number]
        at += 2 * number
        if [launch.kernel for launch in found] != [symbols[launch.kernel] for launch in schedule.launches]:
            raise InputError(
                f"the launches that ncu saw are not those of {recording.network}",
                "profile the recorded frames and nothing else",
            )
        for index, (launch, counts) in enumerate(zip(found, recording.counts, strict=True)):
            pairs = {name: [launch.counts.get(name), counts[name]] for name in COUNTED}
            rows.append(
                {
                    "network": recording.network,
                    "size_hw": list(recording.size_hw),
                    "launch": index,
                    "kernel": schedule.launches[index].kernel,
                    **pairs,
                    "good": all(_agree(*pairs[name]) for name in _COMPARED),
                }
            )
    if at != len(launches):
        raise InputError(
            f"ncu saw {len(launches)} launches, and the frames have {at}", "profile the recorded frames and nothing else",
            expected=at, got=len(launches),
        )  # fmt: skip
    if absent := [name for name in _COMPARED if all(row[name][0] is None for row in rows)]:
        raise InputError(
            f"ncu did not report {', '.join(absent)} for any launch",
            "profile with the metrics that this script asks for (no --csv)",
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The counters of each kernel as Markdown, summed over its launches: the device's, and the ratio to the emulator's."""
    lines = [
        f"| network | kernel | size | {' | '.join(f'{name} | of the emulator' for name in COUNTED[:3])} | good |",
        "| --- | --- | --- |" + " ---: |" * 6 + " --- |",
    ]
    groups: dict[tuple[str, str, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["kernel"], tuple(row["size_hw"])), []).append(row)
    for (network, kernel, (height, width)), group in groups.items():
        cells = []
        for name in COUNTED[:3]:
            device = [row[name][0] for row in group]
            emulator = sum(row[name][1] for row in group)
            total = None if None in device else sum(device)
            cells += [
                "-" if total is None else f"{total:.0f}",
                "-" if total is None or not emulator else f"{total / emulator:.2f}",
            ]
        good = "yes" if all(row["good"] for row in group) else "**no**"
        lines.append(f"| {network} | `{kernel}` | {height}x{width} | {' | '.join(cells)} | {good} |")
    return "\n".join(lines) + "\n"


def _agree(device: float | None, emulator: float) -> bool:
    return device is None or abs(device - emulator) <= _TOLERANCE * max(emulator, 1.0)


def _symbols(program: Program) -> Mapping[str, str]:
    (target,) = program.targets.values()
    return {name: binary.symbol for name, binary in target.binaries.items()}


def _function(name: str) -> str:
    # C++ kernels come with their arguments.
    return name.partition("(")[0].strip()


def _ctas(grid: str) -> float:
    sides = [int(side) for side in re.findall(r"\d+", grid)]
    if len(sides) != 3:
        raise ValueError(f"the grid {grid}")
    return float(math.prod(sides))


def _number(text: str) -> float | None:
    # Thousands are separated by commas; a counter that the device does not have is "n/a".
    return None if text.strip().lower() in ("", "n/a") else float(text.replace(",", ""))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check the path") from None


if __name__ == "__main__":
    raise SystemExit(main())
