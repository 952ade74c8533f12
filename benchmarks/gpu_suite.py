"""One command for a machine with a GPU: check every kernel, the loss and the whole frame, then time them next to alternatives.

python -m benchmarks.gpu_suite [--parts PART,...] [--sizes 480x640,1024x1280] [--rounds 50] [--kernels NAME,...] [--json FILE]
python -m benchmarks.gpu_suite --table FILE

Parts, in the order in which they run (``--parts all`` for every one; the default is all but the sweep):

    checks    every kernel against its float64 reference in both precisions, at odd sizes; the loss to second order; a frame
    frame     official sequence in eager fp32 and fp16, torch.compile fp16, our kernels as one graph; ONNX Runtime on CUDA
              and TensorRT if they are usable
    launches  every kernel by itself, next to the measured rates of memory and matrix units
    loss      loss with gradient and second order, our kernels next to torch's operations, and the launches of each
    engines   the back ends on each installed CUDA driver layer: device time of the graph, wall time of the whole call
    leaks     what 10 000 frames and 100 size changes leave behind on each layer
    sweep     every kernel with other tiles and warps; --kernels names those that are swept

All kernels are first compiled on all cores. Times are medians of device events, in turns within one process. If a part fails,
the JSON holds its error and the other parts still run; the JSON is written after every part. The exit code is 1 if a check or
a part failed. ``--table`` prints the tables of the documentation from the JSON of a run and measures nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge import cuda
from refusion_edge.arrays import Array, State
from refusion_edge.bench.report import describe_machine, describe_versions, now_utc
from refusion_edge.errors import UsageError
from refusion_edge.files import write_atomically
from refusion_edge.machine import is_installed
from refusion_edge.sizes import parse_size

SCHEMA = "refusion-edge/bench-gpu/1"
TASK = "ir_vis"
_PACKAGES = (
    "torch",
    "triton",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "cuda-bindings",
    "numpy",
)
_CHECKED_SIZES = ((3, 5), (61, 83), (1, 200))
_CHECKED_LOSS = (2, 1, 37, 150)
_TIMED_LOSS = (16, 1, 128, 128)
_FRAMES, _CHANGES = 10_000, 100
# Goals on an H200, from the design of the kernels: ms by size, and times faster than others.
_GOALS_MS = {(480, 640): 0.6, (1024, 1280): 2.5}
_GOALS_FASTER = {"official, torch eager fp32": 20.0, "official, torch.compile fp16": 5.0}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings shared by all parts.

    Attributes:
        sizes_hw: Height and width of each timed image.
        rounds: Rounds that count.
        state: The 86 parameters.
        swept: Kernels of the sweep; empty for all.
    """

    sizes_hw: tuple[tuple[int, int], ...]
    rounds: int
    state: State
    swept: tuple[str, ...] = ()

    def planes(self, size_hw: tuple[int, int]) -> Array:
        """A sample pair of the task, (2, H, W) float32."""
        from benchmarks.peers import planes

        a, b = planes(size_hw)
        return np.concatenate([a[0], b[0]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and print, or print the tables of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(name for name in PARTS if name != "sweep"))
    parser.add_argument("--sizes", default="480x640,1024x1280", help="height x width of each timed image")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kernels", default="", metavar="NAME,...", help="kernels of the sweep (default: all)")
    parser.add_argument("--json", type=Path, help="write everything as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables from such a JSON instead of measuring")
    options = parser.parse_args(argv)
    if options.table:
        print(tables(json.loads(options.table.read_text())), end="")
        return 0
    try:
        names, sizes_hw, swept = chosen_parts(options.parts), chosen_sizes(options.sizes), chosen_kernels(options.kernels)
    except UsageError as error:
        parser.error(str(error))
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds} but must be at least 1")
    if trouble := problem():
        parser.error(f"this benchmark needs a GPU: {trouble}")
    from refusion_edge.network.checkpoint import read_checkpoint
    from refusion_edge.network.weights import weights_path

    setting = Setting(sizes_hw, options.rounds, read_checkpoint(weights_path(TASK)).state, swept)
    document: dict[str, Any] = {}
    for document in measure(setting, names):
        if options.json:
            write_atomically(options.json, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    print(tables(document), end="")
    return 0 if is_good(document) else 1


def chosen_parts(text: str) -> list[str]:
    """Read a list of parts, or ``all``, into the order in which they run.

    Raises:
        UsageError: There is no such part.
    """
    names = list(PARTS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise UsageError(f"there is no part {', '.join(unknown)}", f"choose from {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def chosen_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Read a list of sizes, height x width.

    Raises:
        UsageError: One of them is not a fixed size.
    """
    sizes_hw = tuple(size_hw for one in text.split(",") if (size_hw := parse_size(one)) is not None)
    if len(sizes_hw) != len(text.split(",")):
        raise UsageError(f"'{text}' is not a list of sizes", "write HEIGHTxWIDTH, separated by commas")
    return sizes_hw


def chosen_kernels(text: str) -> tuple[str, ...]:
    """Read a list of kernels.

    Raises:
        UsageError: There is no such kernel.
    """
    from refusion_edge.kernels.gpu.schedule import make_schedule

    names, known = tuple(filter(None, text.split(","))), make_schedule().kernels
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no kernel {', '.join(unknown)}", f"choose from {', '.join(known)}")
    return names


def problem() -> str | None:
    """The reason why nothing can be measured here, or None."""
    if trouble := cuda.problem():
        return trouble
    for name in ("torch", "triton"):
        if not is_installed(name):
            return f"{name} is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 runs the kernels on the CPU; unset it"
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no device, or was built without CUDA"


def measure(setting: Setting, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run parts.

    Yields:
        The document of the schema ``refusion-edge/bench-gpu/1``, with one part more each time.
    """
    import torch

    from benchmarks.gpu_clock import measure_ceilings

    started, device = now_utc(), torch.cuda.get_device_properties(0)
    compiled = _compile_ahead(setting, names)
    print(f"{compiled} kernels compiled in advance", flush=True)
    ceilings = asdict(measure_ceilings(setting.rounds))
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "started": started,
        "machine": asdict(describe_machine()),
        "versions": {**describe_versions(set()), **package_versions()},
        "device": {
            "name": device.name,
            "compute_capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory_bytes": device.total_memory,
            "cuda": torch.version.cuda,
        },
        "ceilings": ceilings,
        "rounds": setting.rounds,
        "parts": {},
    }
    for name in names:
        document["parts"][name] = run_part(PARTS[name], setting, ceilings)
        yield document


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that take part."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run_part(part: Callable[[Setting, dict[str, float]], Iterator[Row]], setting: Setting, ceilings: dict[str, float]) -> Row:
    """Run one part; returns its rows, and the error that ended it or None."""
    rows: list[Row] = []
    try:
        for row in part(setting, ceilings):
            # JSON has no infinities and no NaN.
            rows.append(
                {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
            )
            print(json.dumps(rows[-1]), flush=True)
    except Exception as error:  # one part must not take the others with it
        traceback.print_exc()
        return {"rows": rows, "error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    return {"rows": rows, "error": None}


def is_good(document: dict[str, Any]) -> bool:
    """Tell whether every part came to its end and every check was good."""
    parts = document["parts"].values()
    return all(part["error"] is None and all(row.get("good", True) for row in part["rows"]) for part in parts)


def _architecture() -> int:
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def _tiles() -> Any:
    from refusion_edge.kernels.gpu.schedule import tiles

    return tiles(_architecture())


def _compile_ahead(setting: Setting, names: Sequence[str]) -> int:
    from benchmarks.gpu_compile import Wanted, compile_ahead, wanted
    from benchmarks.gpu_speed import sweep_tiles

    dtypes = ("float16", "float32") if "checks" in names else ("float16",)
    work = wanted(_tiles(), dtypes) if set(names) - {"loss", "engines", "leaks"} else []
    if "sweep" in names:
        work += [
            Wanted(name, "float16", tile)
            for name, chosen in _tiles().items()
            if name in (setting.swept or _tiles())
            for tile in sweep_tiles(name, chosen)
        ]
    with_loss = bool({"checks", "loss"} & set(names))
    return compile_ahead(work, _architecture(), with_loss=with_loss) if work or with_loss else 0


def _checks(setting: Setting, _: dict[str, float]) -> Iterator[Row]:
    from benchmarks import gpu_checks

    yield from gpu_checks.check_kernels(setting.state, _tiles(), _CHECKED_SIZES, "cuda")
    yield from gpu_checks.check_loss(_CHECKED_LOSS, "cuda")
    for size_hw in ((61, 83), *setting.sizes_hw):
        yield from gpu_checks.check_frame(setting.state, _tiles(), setting.planes(size_hw), "cuda")


def _frame(setting: Setting, ceilings: dict[str, float]) -> Iterator[Row]:
    from benchmarks.gpu_clock import Ceilings
    from benchmarks.gpu_speed import time_frames

    for size_hw in setting.sizes_hw:
        yield from time_frames(setting.state, _tiles(), setting.planes(size_hw), setting.rounds, Ceilings(**ceilings))
        yield from _onnxruntime(setting, size_hw)


def _onnxruntime(setting: Setting, size_hw: tuple[int, int]) -> Iterator[Row]:
    if not is_installed("onnxruntime"):
        return
    import onnxruntime
    import torch

    from benchmarks.gpu_clock import medians_ms
    from refusion_edge.network.forms import REFERENCE
    from refusion_edge.network.graph import fill, read_template

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return
    for form, precision in ((REFERENCE, "fp32"), ("tensorrt-folded", "fp16")):
        model = fill(read_template(form, precision), setting.state, size_hw).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"])
        binding, outputs = session.io_binding(), torch.empty(1, 1, *size_hw, device="cuda")
        sources = [torch.from_numpy(plane)[None, None].cuda() for plane in setting.planes(size_hw)]
        for name, tensor in zip(("a", "b"), sources, strict=True):
            binding.bind_input(name, "cuda", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("fused", "cuda", 0, np.float32, tuple(outputs.shape), outputs.data_ptr())
        # It has a stream of its own and waits for it, so torch's events around a run see its time, and that of the call.
        work = {"run": lambda: session.run_with_iobinding(binding)}  # noqa: B023
        yield {"name": f"ONNX Runtime CUDA, {form} {precision}", "size_hw": list(size_hw),
               "ms": medians_ms(work, setting.rounds)["run"]}  # fmt: skip


def _launches(setting: Setting, ceilings: dict[str, float]) -> Iterator[Row]:
    from benchmarks.gpu_clock import Ceilings
    from benchmarks.gpu_speed import time_launches

    for size_hw in setting.sizes_hw:
        yield from time_launches(setting.state, _tiles(), setting.planes(size_hw), setting.rounds, Ceilings(**ceilings))


def _loss(setting: Setting, _: dict[str, float]) -> Iterator[Row]:
    from benchmarks.gpu_speed import time_loss

    yield from time_loss(_TIMED_LOSS, setting.rounds)


def _engines(setting: Setting, _: dict[str, float]) -> Iterator[Row]:
    from benchmarks.gpu_engines import time_engine

    opening = _opening(setting)
    for layer in cuda.layers():
        yield from time_engine(f"fused, {layer}", cuda.open_driver(layer), opening, list(setting.sizes_hw), setting.rounds)
    yield from _tensorrt(setting)


def _leaks(setting: Setting, _: dict[str, float]) -> Iterator[Row]:
    import torch

    from benchmarks.gpu_engines import watch_for_leaks

    opening = _opening(setting)
    for layer in cuda.layers():
        leaks = watch_for_leaks(
            cuda.open_driver(layer), opening, lambda: torch.cuda.mem_get_info()[0], frames=_FRAMES, changes=_CHANGES
        )
        yield {"name": f"fused, {layer}", **leaks, "good": leaks["lost_bytes"] <= 0 and leaks["same"]}


def _opening(setting: Setting) -> Callable[[Any], Any]:
    """Opens the program of the paper's network on a driver."""
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.cuda.program_file import program_bytes
    from refusion_edge.export.targets.cubins import make_program

    program = make_program(setting.state, {"task": TASK}, [_architecture()], jobs=os.cpu_count() or 1)
    return functools.partial(_opened, FusedBackend, program_bytes(program))


def _tensorrt(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu_engines import time_engine
    from refusion_edge.backends.registry import status
    from refusion_edge.backends.tensorrt.runner import TrtBackend, TrtRtxBackend
    from refusion_edge.bundle.manifest import PLAN
    from refusion_edge.export.build import BuildSpec, build

    for backend in (TrtBackend, TrtRtxBackend):
        if not status(backend.name).usable:
            continue
        for size_hw in setting.sizes_hw:
            plan = build(BuildSpec(TASK, "fp16", backend.name, size_hw)).bundle.read(PLAN)
            opening = functools.partial(_opened, backend, plan)
            yield from time_engine(f"{backend.name} fp16", cuda.open_driver(), opening, [size_hw], setting.rounds)


def _opened(backend: Callable[..., Any], data: bytes, driver: Any) -> Any:
    return backend(data, driver=driver)


def _sweep(setting: Setting, _: dict[str, float]) -> Iterator[Row]:
    from benchmarks.gpu_speed import time_sweep

    yield from time_sweep(setting.state, _tiles(), setting.planes(setting.sizes_hw[0]), setting.rounds, setting.swept)


PARTS: dict[str, Callable[[Setting, dict[str, float]], Iterator[Row]]] = {
    "checks": _checks,
    "frame": _frame,
    "launches": _launches,
    "loss": _loss,
    "engines": _engines,
    "leaks": _leaks,
    "sweep": _sweep,
}


def tables(document: dict[str, Any]) -> str:
    """The tables of the documentation, as Markdown, from the JSON of a run."""
    device, ceilings, parts = document["device"], document["ceilings"], document["parts"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"{device['name']} (compute capability {device['compute_capability']}), {document['started'][:10]}, medians of "
        f"{document['rounds']} rounds; {versions}.",
        f"Measured rates: {ceilings['bytes_per_s'] / 1e12:.2f} TB/s in a copy, {ceilings['flops_per_s'] / 1e12:.0f} TFLOP/s in "
        "a product of fp16 matrices.",
    ]
    for name, part in parts.items():
        if part["error"]:
            lines += ["", f"**The part {name} did not come to its end: {part['error']}**"]
        if part["rows"]:
            lines += ["", *_TABLES[name](part["rows"])]
    return "\n".join(lines) + "\n"


def _size(row: Row) -> str:
    height, width = row["size_hw"]
    return f"{width}x{height}"


def _check_table(rows: list[Row]) -> list[str]:
    bad = [row for row in rows if not row["good"]]
    lines = [
        f"{len(rows) - len(bad)} of {len(rows)} checks are good.",
        "",
        "| check | dtype | worst | limit |",
        "| --- | --- | ---: | ---: |",
    ]
    for key in dict.fromkeys((row["check"], row["dtype"]) for row in rows):
        group = [row for row in rows if (row["check"], row["dtype"]) == key and row["error"] is not None]
        worst = (min if key[0] == "frame" else max)((row["error"] for row in group), default=None)
        if worst is not None:
            lines.append(f"| {key[0]} | {key[1]} | {worst:.3g} | {group[0]['limit']:g} |")
    return lines + [f"- **bad**: {row['name']}, {row['dtype']}, {_size(row)}: {row['error']} {row['remark']}" for row in bad]


def _frame_table(rows: list[Row]) -> list[str]:
    lines = ["| what | size | ms | beside ours | goal | met |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        beside, name = row.get("beside_ours"), row["name"]
        goal, met = "", ""
        if "roofline_ms" in row:
            share = row["roofline_ms"] / row["ms"]
            limit = _GOALS_MS.get(tuple(row["size_hw"]))
            name += f" ({100 * share:.0f} % of the roofline, {row['scratch_bytes'] / 1e6:.0f} MB)"
            goal, met = ("", "") if limit is None else (f"{limit:g} ms", _yes(row["ms"] <= limit and share >= 0.5))
        elif name in _GOALS_FASTER and beside is not None:
            goal, met = f"{_GOALS_FASTER[name]:g}x", _yes(beside >= _GOALS_FASTER[name])
        lines.append(
            f"| {name} | {_size(row)} | {row['ms']:.3f} | {'' if beside is None else f'{beside:.1f}x'} | {goal} | {met} |"
        )
    return lines


def _launch_table(rows: list[Row]) -> list[str]:
    lines = [
        "| kernel | size | launches | us each | share of the roofline | tile |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        columns, height, warps = row["tile"]
        lines.append(
            f"| `{row['name']}` | {_size(row)} | {row['launches']} | {1e3 * row['ms']:.1f} | "
            f"{100 * row['roofline_ms'] / row['ms']:.0f} % | {columns}x{height}, {warps} warps |"
        )
    return lines


def _loss_table(rows: list[Row]) -> list[str]:
    lines = ["| loss to second order | shape | ms | launches |", "| --- | --- | ---: | ---: |"]
    return lines + [
        f"| {row['name']} | {'x'.join(map(str, row['shape']))} | {row['ms']:.3f} | {row['launches']} |" for row in rows
    ]


def _engine_table(rows: list[Row]) -> list[str]:
    lines = ["| engine | size | device, ms | call, ms |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        device = "-" if row["device_ms"] is None else f"{row['device_ms']:.3f}"
        lines.append(f"| {row['name']} | {_size(row)} | {device} | {row['wall_ms']:.3f} |")
    return lines


def _leak_lines(rows: list[Row]) -> list[str]:
    return [
        f"- {row['name']}: {row['frames']} frames and {row['changes']} changes of size left {row['lost_bytes']} bytes behind, "
        f"the result {'is the same' if row['same'] else '**changed**'}."
        for row in rows
    ]


def _sweep_table(rows: list[Row]) -> list[str]:
    lines = ["| kernel | chosen | us | fastest | us |", "| --- | --- | ---: | --- | ---: |"]
    for name in dict.fromkeys(row["name"] for row in rows):
        timed = [row for row in rows if row["name"] == name and row["ms"] is not None and not row["remark"]]
        chosen = next((row for row in timed if row["chosen"]), None)
        if timed and chosen:
            best = min(timed, key=lambda row: row["ms"])
            shown = (f"{one['tile'][0]}x{one['tile'][1]}/{one['tile'][2]} | {1e3 * one['ms']:.1f}" for one in (chosen, best))
            lines.append(f"| `{name}` | {' | '.join(shown)} |")
    return lines


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


_TABLES: dict[str, Callable[[list[Row]], list[str]]] = {
    "checks": _check_table,
    "frame": _frame_table,
    "launches": _launch_table,
    "loss": _loss_table,
    "engines": _engine_table,
    "leaks": _leak_lines,
    "sweep": _sweep_table,
}


if __name__ == "__main__":
    raise SystemExit(main())
