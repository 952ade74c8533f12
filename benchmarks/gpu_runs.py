"""What to run when a machine with a GPU is at hand for a short time, and its answers in one file.

python -m benchmarks.gpu_runs --list
python -m benchmarks.gpu_runs LINE[/STEP] ... [--limit-s 570] [--folder build/gpu-runs] [--json FILE]
python -m benchmarks.gpu_runs --all [...]

A line (``benchmarks.gpu_lines``) is a few commands that answer one question. ``--list`` prints them with the time that they
should take, and how to make what they need beforehand. All lines of a call share the limit: a step that is not expected to fit
into what is left is skipped, and one that takes longer is stopped. Training continues where the last call stopped it. The JSON,
by default benchmarks/results/DATE-GPU-LINES.json, is written after every step and holds each command, its exit code, its time,
the end of what it printed and its own result. The exit code is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu_lines import INPUTS, Line, Step, lines
from refusion_edge import cuda
from refusion_edge.bench.report import describe_machine, describe_versions, now_utc
from refusion_edge.errors import BackendError, RefusionError, UsageError
from refusion_edge.files import output_error, require_writable, write_atomically
from refusion_edge.machine import accelerator, is_installed

SCHEMA = "refusion-edge/gpu-runs/1"
ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 570.0
GRACE_S = 20.0
"""Part of the limit that is kept for a step to end when it is stopped: training writes a checkpoint."""

_STOPPED = 130
_LOG, _LOGGED_LINES = "log.jsonl", 20
_TAIL_CHARACTERS = 4000
_PACKAGES = ("torch", "triton", "tensorrt_rtx", "pycuda", "cuda-bindings", "pytest")

State = Literal["passed", "failed", "stopped", "skipped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: The step's.
        command: The words.
        state: ``stopped`` for training that goes on in the next call.
        reason: Why it was skipped, failed or was stopped; empty if it passed.
        exit_code: Exit code; negative for a signal, None if it was not started.
        seconds: How long it took.
        printed: The end of its output.
        result: Its own JSON, the last lines of the log of a training run, or None.
    """

    name: str
    command: tuple[str, ...]
    state: State
    reason: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    printed: str = ""
    result: Any = None


def main(argv: Sequence[str] | None = None) -> int:
    """List, or run lines and print a table of their steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help="lines to run, in this order; LINE/STEP for one step")
    parser.add_argument("--list", action="store_true", help="print the lines and their steps, and run nothing")
    parser.add_argument("--all", action="store_true", help="run all lines, in the order of the list")
    parser.add_argument(
        "--limit-s", type=float, default=LIMIT_S, metavar="S", help="time for everything (default: %(default)g)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/gpu-runs"),
        metavar="DIR",
        help="what goes in and comes out (default: %(default)s)",
    )
    parser.add_argument("--commit", help="commit of this code, where it is not in a checkout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the answers go (default: benchmarks/results/...)")
    options = parser.parse_args(argv)
    known = lines()
    if options.list:
        print(listing(known, options.folder), end="")
        return 0
    try:
        chosen = choose(known, [line.name for line in known] if options.all else options.lines)
        if not options.limit_s > GRACE_S:
            raise UsageError(
                f"--limit-s is {options.limit_s:g}", f"allow more than the {GRACE_S:g} s that are kept for a step to end",
                expected=GRACE_S, got=options.limit_s,
            )  # fmt: skip
        if trouble := cuda.problem():
            raise BackendError(f"these runs need a GPU: {trouble}", "see what they would do with --list")
        target = options.json or unused(ROOT / "benchmarks" / "results" / default_name(chosen))
        require_writable(target)
        document: dict[str, Any] = {}
        for document in run(chosen, options.folder, options.limit_s):
            if options.commit:
                document["versions"]["commit"] = options.commit
            write_atomically(target, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    except RefusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{table(document)}wrote {target}")
    return 1 if any(step["state"] == "failed" for line in document["lines"] for step in line["steps"]) else 0


def choose(known: Sequence[Line], names: Sequence[str]) -> list[Line]:
    """Find lines, or single steps of them, by their names.

    Raises:
        UsageError: There is no such line or step, or none is named.
    """
    by_name = {line.name: line for line in known}
    by_name |= {f"{line.name}/{step.name}": replace(line, steps=(step,)) for line in known for step in line.steps}
    some = ", ".join(line.name for line in known)
    if unknown := [name for name in names if name not in by_name]:
        raise UsageError(f"there is no line {', '.join(unknown)}", f"choose from {some}, or a step from --list")
    if not names:
        raise UsageError("no line is named", f"choose from {some}, or --all")
    return [by_name[name] for name in dict.fromkeys(names)]


def default_name(chosen: Sequence[Line]) -> str:
    """Name of the JSON: date, device and lines."""
    device = re.sub(r"[^a-z0-9]+", "-", (accelerator() or "gpu").lower()).strip("-").removeprefix("nvidia-")
    what = "all" if len(chosen) == len(lines()) else "-".join(dict.fromkeys(line.name for line in chosen))
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}-{device}-{what}.json"


def unused(path: Path) -> Path:
    """The path, or, if there is such a file, the first with a number that there is not: device time is too rare to lose any."""
    paths = (path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, 1000)))
    return next(one for one in paths if not one.exists())


def run(chosen: Sequence[Line], folder: Path, limit_s: float) -> Iterator[dict[str, Any]]:
    """Run lines.

    Args:
        chosen: The lines.
        folder: What goes in and comes out.
        limit_s: Time for everything.

    Yields:
        The document of the schema ``refusion-edge/gpu-runs/1``, with one step more each time.

    Raises:
        OutputError: The folder cannot be made.
    """
    end_s = time.monotonic() + limit_s
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "started": now_utc(),
        "machine": asdict(describe_machine()),
        "versions": {**describe_versions(set()), **_package_versions()},
        "compute_capability": cuda.compute_capability(),
        "limit_s": limit_s,
        "lines": [],
    }
    for line in chosen:
        print(f"== {line.name}: {line.answers}", flush=True)
        document["lines"].append({"name": line.name, "answers": line.answers, "steps": []})
        for step in line.steps:
            outcome = run_step(line, step, folder.resolve(), end_s - time.monotonic())
            print(f"-- {line.name} {step.name}: {outcome.state} {outcome.reason}".rstrip(), flush=True)
            document["lines"][-1]["steps"].append(asdict(outcome))
            yield document


def run_step(line: Line, step: Step, folder: Path, left_s: float) -> Outcome:
    """Run one step, unless it lacks something or would not fit.

    Args:
        line: Its line.
        step: The step.
        folder: What goes in and comes out.
        left_s: What is left of the limit.
    """
    result = folder / f"{line.name}-{step.name}.json"
    command = words(step, folder, result)
    if missing := lacks(step, folder):
        return Outcome(step.name, command, "skipped", missing)
    # A run that can go on later uses what there is.
    least_s = GRACE_S if step.run else step.expected_s
    if least_s + GRACE_S > left_s:
        return Outcome(step.name, command, "skipped", f"it should take {least_s:.0f} s, and {max(left_s, 0):.0f} s are left")
    allowed_s = min(left_s - GRACE_S, step.expected_s if step.run else left_s)
    print(f"-- {line.name} {step.name}, at most {allowed_s:.0f} s: {shlex.join(command)}", flush=True)
    result.unlink(missing_ok=True)
    started = time.monotonic()
    code, printed, in_time = execute(command, allowed_s, step.environment)
    state, reason = judge(step, code, printed, in_time=in_time)
    own, trouble = _read(result) if step.writes_json else (_logged(folder / step.run) if step.run else None, "")
    if trouble and state == "passed":
        state, reason = "failed", trouble
    return Outcome(
        step.name, command, state, reason, code, round(time.monotonic() - started, 3), printed[-_TAIL_CHARACTERS:], own
    )


def words(step: Step, folder: Path, result: Path) -> tuple[str, ...]:
    """The command of a step.

    Args:
        step: The step.
        folder: What goes in and comes out.
        result: The file for its own result.
    """
    filled = {"{python}": sys.executable, "{folder}": str(folder), "{json}": str(result)}
    command = [functools.reduce(lambda text, item: text.replace(*item), filled.items(), word) for word in step.command]
    if step.run and any((folder / step.run).glob("step-*.safetensors")):
        command += ["--resume", str(folder / step.run)]
    return tuple(command)


def lacks(step: Step, folder: Path) -> str:
    """What a step lacks here, and how to get it; empty if nothing."""
    if absent := [name for name in step.modules if not is_installed(name)]:
        return f"{', '.join(absent)} is not installed"
    if absent := [name for name in step.programs if not shutil.which(name)]:
        return f"{', '.join(absent)} is not on the path"
    for name in step.inputs:
        if not (folder / name).exists():
            made = INPUTS.get(name, "an earlier step").format(folder=folder)
            return f"{folder / name} does not exist; it comes from: {made}"
    return ""


def execute(command: Sequence[str], limit_s: float, environment: dict[str, str]) -> tuple[int, str, bool]:
    """Run a command in the root of the repository, and show what it prints.

    Beyond the limit it is asked to end, and killed if it has not after half of ``GRACE_S``.

    Args:
        command: The words.
        limit_s: Time that it may take.
        environment: Further environment variables.

    Returns:
        The exit code, what it printed, and whether it ended in time.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,  # so that what it starts in turn ends with it
    )  # fmt: skip
    printed: list[str] = []
    # A thread, because reading has no limit.
    reader = threading.Thread(target=_copy, args=(process, printed), daemon=True)
    reader.start()
    in_time = False
    try:
        in_time = _ends(process, limit_s)
        if not in_time:
            _signal(process, signal.SIGTERM)
            _ends(process, GRACE_S / 2)
    finally:
        # Also what a step left behind, which would hold the device, and everything if this process is interrupted.
        _signal(process, signal.SIGKILL)
    code = process.wait()
    reader.join(5.0)
    return code, "".join(printed), in_time


def _ends(process: subprocess.Popen[str], limit_s: float) -> bool:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _copy(process: subprocess.Popen[str], printed: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            printed.append(line)
            print(line, end="", flush=True)


def judge(step: Step, code: int, printed: str, *, in_time: bool) -> tuple[State, str]:
    """Tell what became of a step that was started, and why."""
    if step.run and not in_time and code in (0, _STOPPED):
        return ("stopped", "out of time; the next call continues it") if code else ("passed", "")
    if not in_time:
        return "failed", "out of time"
    if code == 0:
        return "passed", ""
    last = (printed.strip().splitlines() or ["it printed nothing"])[-1]
    return "failed", f"exit code {code}: {last[:200]}"


def table(document: dict[str, Any]) -> str:
    """The steps as a table in Markdown."""
    rows = ["| line | step | state | seconds | |", "| --- | --- | --- | ---: | --- |"]
    for line in document["lines"]:
        for step in line["steps"]:
            state = step["state"] if step["state"] != "failed" else "**failed**"
            seconds = "" if step["exit_code"] is None else f"{step['seconds']:.0f}"
            rows.append(f"| {line['name']} | {step['name']} | {state} | {seconds} | {step['reason']} |")
    return "\n".join(rows) + "\n"


def listing(known: Sequence[Line], folder: Path) -> str:
    """All lines with their steps, and how to make what they need."""
    parts = []
    for number, line in enumerate(known, 1):
        parts.append(f"{number}. {line.name}, about {line.expected_s / 60:.0f} min: {line.answers}")
        for step in line.steps:
            command = shlex.join(words(step, folder, folder / f"{line.name}-{step.name}.json"))
            parts.append(f"   {step.name}, {step.expected_s:.0f} s: {command.replace(sys.executable, 'python')}")
    parts.append("made beforehand, without a GPU:")
    parts += [f"   {command.format(folder=folder)}" for command in INPUTS.values()]
    return "\n".join(parts) + "\n"


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _read(result: Path) -> tuple[Any, str]:
    try:
        # JSON has no NaN, but Python writes it.
        return json.loads(result.read_text(), parse_constant=lambda _: None), ""
    except FileNotFoundError:
        return None, f"it did not write {result.name}"
    except (OSError, ValueError) as error:
        return None, f"{result.name} cannot be read ({error})"


def _logged(run: Path) -> list[Any]:
    """The last validations in the log of a training run."""
    log = run / _LOG
    if not log.is_file():
        return []
    events = (json.loads(line) for line in log.read_text().splitlines())
    return [event for event in events if event["event"] in ("validation", "guard", "stop")][-_LOGGED_LINES:]


def _package_versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


if __name__ == "__main__":
    # An outer limit must end the running step, too, by the finally clause of ``execute``.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main())
