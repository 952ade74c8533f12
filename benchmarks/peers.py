"""The network as others would run it, next to ours, in turns in one process.

python -m benchmarks.peers [--size 240x320] [--rounds 30] [--threads 1] [--compile] [--json FILE] [--loaded]
python -m benchmarks.peers --table FILE

Peers: the official operator sequence in PyTorch, the same under torch.compile (takes minutes to compile), its plain ONNX
export on ONNX Runtime and on OpenVINO, our graph, our module in PyTorch, every other back end that is usable here, and the
network fast on ONNX Runtime and on the native kernels. All in fp32, on the weights of the package, on one sample pair. In
each round every peer fuses once, starting with a different one; wall and processor time are those of that call. Memory is
measured in a separate process for each peer. --table prints the table of the README from the JSON of a run. A plain export
needs 2.5 GB in ONNX Runtime at 480x640.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refusion_edge.accuracy.gate import resized
from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.registry import BACKENDS, RunOptions, open_weights, status
from refusion_edge.bench.report import describe_machine, describe_versions, now_utc
from refusion_edge.bench.sensors import MemoryWatch
from refusion_edge.bench.statistics import Ratio, ratio, spread
from refusion_edge.bench.timing import SystemClock, read_load, require_room
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.export.build import build
from refusion_edge.export.graph.trace import silence
from refusion_edge.files import write_atomically
from refusion_edge.fuser import load as load_fuser
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.machine import is_installed
from refusion_edge.network import fast as fast_network
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.weights import weights_path
from refusion_edge.sizes import parse_size
from refusion_edge.tasks import find_task

SCHEMA = "refusion-edge/bench-peers/1"
OURS = "onnxruntime"
TASK = "ir_vis"
FAST = "fast"  # the second network; its peers are named fast-BACKEND
# Two fp32 ways to the same numbers; a peer that is further off computes something else.
MOST_ERROR = 1e-4
_PACKAGES = ("torch", "onnxruntime", "openvino", "onnx", "numpy")

Fuse = Callable[[Float32Array, Float32Array], Float32Array]


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings shared by all peers.

    Attributes:
        size_hw: Height and width.
        threads: Threads of each peer.
        folder: Where the exported model and the bundles of back ends lie.
    """

    size_hw: tuple[int, int]
    threads: int
    folder: Path

    @property
    def exported(self) -> Path:
        """The plain export of the official sequence."""
        return self.folder / "official.onnx"


def main() -> int:
    """Measure and print, or print the table of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="240x320", help="height x width (default: 240x320)")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds, after two for warm-up (default: 30)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each peer (default: 1)")
    parser.add_argument("--compile", action="store_true", help="include torch.compile, which compiles for minutes")
    parser.add_argument("--loaded", action="store_true", help="measure even if other programs keep the machine busy")
    parser.add_argument("--json", type=Path, help="write the numbers as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table from such a JSON, and measure nothing")
    parser.add_argument("--memory", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())), end="")
        return 0
    size_hw = parse_size(options.size)
    if size_hw is None or options.rounds < 1 or options.threads < 1:
        parser.error("expected a size as HxW and at least one round and thread")
    if options.memory:
        name, folder = options.memory
        print(json.dumps(_memory_here(name, Setting(size_hw, options.threads, Path(folder)))))
        return 0
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        document = measure(Setting(size_hw, options.threads, Path(folder)), options.rounds, options.compile, options.loaded)
    print(table(document), end="")
    if options.json:
        write_atomically(options.json, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
    return 0


def measure(setting: Setting, rounds: int, with_compile: bool, loaded: bool) -> dict[str, Any]:
    """Measure all peers.

    Returns:
        The document of the schema ``refusion-edge/bench-peers/1``.

    Raises:
        MeasurementError: Other programs keep the machine busy, and ``loaded`` is not set.
    """
    started, clock = now_utc(), SystemClock()
    load_before = read_load(clock)
    if not loaded:
        require_room(load_before)
    a, b = planes(setting.size_hw)
    export_official(setting)
    names = peers(with_compile)
    prepare_backends(names, setting)
    memory = {name: _memory_in_a_process(name, setting) for name in names}

    wall_ms: dict[str, list[float]] = {name: [] for name in names}
    cpu_ms: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as opened:
        fuses = {name: opened.enter_context(open_peer(name, setting)) for name in names}
        outputs = {name: np.array(fuse(a, b), np.float64) for name, fuse in fuses.items()}
        for index in range(-2, rounds):
            for name in [*names[index % len(names) :], *names[: index % len(names)]]:
                cpu, wall = time.process_time(), time.perf_counter()
                fuses[name](a, b)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if index >= 0:
                    wall_ms[name].append(1e3 * wall)
                    cpu_ms[name].append(1e3 * cpu)
    load_after = read_load(clock)
    fast = fast_reference(a, b)
    rows = []
    for name in names:
        error = float(np.abs(outputs[name] - (fast if _is_fast(name) else outputs["official"])).max())
        if error > MOST_ERROR:
            raise SystemExit(f"{name} differs from its reference by {error:.1e}")
        rows.append(
            {
                "peer": name,
                "what": describe(name),
                "wall": asdict(spread(np.array(wall_ms[name]))),
                "cpu": asdict(spread(np.array(cpu_ms[name]))),
                "wall_beside_ours": asdict(ratio(np.array(wall_ms[name]), np.array(wall_ms[OURS]))),
                "cpu_beside_ours": asdict(ratio(np.array(cpu_ms[name]), np.array(cpu_ms[OURS]))),
                "added_mib": memory[name],
                "max_difference": error,
            }
        )
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES if is_installed(name)}
    return {
        "schema": SCHEMA,
        "started": started,
        "machine": asdict(describe_machine()),
        "versions": {**describe_versions(set()), **packages},
        "size_hw": list(setting.size_hw),
        "threads": setting.threads,
        "rounds": rounds,
        "load_before": asdict(load_before),
        "load_after": asdict(load_after),
        "loaded": load_before.is_too_high or load_after.is_too_high,
        "ours": OURS,
        "peers": rows,
    }


def peers(with_compile: bool) -> list[str]:
    """Names of the peers that can run here."""
    names = ["official"]
    if with_compile:
        names.append("official-compiled")
    names.append("export-onnxruntime")
    if is_installed("openvino"):
        names.append("export-openvino")
    names += [name for name in reversed(BACKENDS) if status(name).usable]
    return names + [f"{FAST}-{name}" for name in (OURS, "native") if status(name).usable]


def describe(name: str) -> str:
    """A peer in words."""
    described = {
        "official": "official operator sequence, PyTorch",
        "official-compiled": "official operator sequence, torch.compile",
        "export-onnxruntime": "plain ONNX export of the official sequence, ONNX Runtime",
        "export-openvino": "plain ONNX export of the official sequence, OpenVINO",
        "eager": "our module, PyTorch (`eager`)",
        OURS: f"**our graph, ONNX Runtime (`{OURS}`)**",
    }
    if _is_fast(name):
        return f"our network `{FAST}` (`{_backend(name)}`)"
    return described.get(name) or f"{BACKENDS[name].summary} (`{name}`)"


@contextlib.contextmanager
def open_peer(name: str, setting: Setting) -> Iterator[Fuse]:
    """Open one peer, and close it at the end."""
    state = read_checkpoint(weights_path(TASK)).state
    if name.startswith("official"):
        import torch

        from benchmarks.official_layout import official_fuse

        torch.set_num_threads(setting.threads)
        parameters = {key: torch.from_numpy(array) for key, array in state.items()}
        forward = torch.compile(official_fuse) if name == "official-compiled" else official_fuse

        def fuse(a: Float32Array, b: Float32Array) -> Float32Array:
            with torch.inference_mode():
                return forward(parameters, torch.from_numpy(a), torch.from_numpy(b)).numpy()

        yield fuse
    elif name == "export-onnxruntime":
        from refusion_edge.backends.onnxruntime import OrtBackend

        with OrtBackend(setting.exported.read_bytes(), threads=setting.threads) as backend:
            yield backend.fuse
    elif name == "export-openvino":
        import openvino

        # Processors with bf16 instructions would compute in bf16 unasked.
        properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": setting.threads}
        compiled = openvino.Core().compile_model(str(setting.exported), "CPU", properties)
        request = compiled.create_infer_request()
        yield lambda a, b: request.infer({0: a, 1: b})[0]
    elif _is_fast(name):
        with open_weights(_fast_state(), _backend(name), RunOptions(setting.threads)) as backend:
            yield backend.fuse
    elif name in (OURS, "eager"):
        with open_weights(state, name, RunOptions(setting.threads)) as backend:
            yield backend.fuse
    else:
        with load_fuser(setting.folder / name, threads=setting.threads) as fuser:
            yield fuser.backend.fuse


def planes(size_hw: tuple[int, int]) -> tuple[Float32Array, Float32Array]:
    """The luma planes of a sample pair."""
    pair = resized(read_pair(sample_paths(TASK)[0]), size_hw)
    found = to_planes(pair.a, pair.b, find_task(TASK))
    return found.a, found.b


def fast_reference(a: Float32Array, b: Float32Array) -> NDArray[np.float64]:
    """The output of the network fast for two planes, (1, 1, H, W), in float64, (H, W)."""
    return fast_network.reference(_fast_state(), a[0, 0], b[0, 0])


def export_official(setting: Setting) -> None:
    """Export the official sequence in the usual way: torch.onnx.export with its defaults, at one size."""
    import torch

    from benchmarks.official_layout import official_fuse

    state = read_checkpoint(weights_path(TASK)).state

    class Official(torch.nn.Module):
        """The sequence with its parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.names = list(state)
            self.values = torch.nn.ParameterList([torch.from_numpy(array.copy()) for array in state.values()])

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            """Fuse two planes."""
            return official_fuse(dict(zip(self.names, self.values, strict=True)), a, b)

    examples = tuple(torch.rand(1, 1, *setting.size_hw) for _ in range(2))
    with silence():
        torch.onnx.export(
            Official().eval(), examples, str(setting.exported), dynamo=True, external_data=False, verbose=False,
            input_names=["a", "b"], output_names=["fused"],
        )  # fmt: skip


def prepare_backends(names: list[str], setting: Setting) -> None:
    """Build bundles for the back ends that need one."""
    for name in names:
        if name in BACKENDS and name not in (OURS, "eager"):
            build(BuildSpec(TASK, "fp32", name, setting.size_hw, output=setting.folder / name))


def table(document: dict[str, Any]) -> str:
    """The table of the README, as Markdown, from the JSON of a run."""
    height, width = document["size_hw"]
    machine, versions = document["machine"], document["versions"]
    lines = [
        f"{height}x{width}, fp32, {document['threads']} thread{'' if document['threads'] == 1 else 's'}, "
        f"{machine['processor']} ({machine['cores']} cores), {document['started'][:10]}, "
        f"{document['rounds']} interleaved rounds; {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        "",
    ]
    if document["loaded"]:
        average = document["load_before"]["average"]
        lines += [f"**Measured on a loaded machine (load average {average}): not for quoting.**", ""]
    lines += [
        "| what | wall, ms | CPU time, ms | CPU time relative to our graph | added memory, MiB |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    for row in document["peers"]:
        beside = "-" if row["peer"] == document["ours"] else _beside(Ratio(**row["cpu_beside_ours"]))
        memory = "-" if row["added_mib"] is None else f"{row['added_mib']:.0f}"
        lines.append(
            f"| {describe(row['peer'])} | {row['wall']['median_ms']:.0f} | {row['cpu']['median_ms']:.0f} "
            f"| {beside} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def _is_fast(name: str) -> bool:
    return name.startswith(f"{FAST}-")


def _backend(name: str) -> str:
    return name.removeprefix(f"{FAST}-")


def _fast_state() -> State:
    return read_checkpoint(weights_path(TASK, FAST)).state


def _beside(found: Ratio) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.2f}x ({found.pairs} rounds are too few for an interval)"
    if not found.distinct:
        return f"cannot be told apart ({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:.2f}x ({found.low:.2f} to {found.high:.2f})"


def _memory_in_a_process(name: str, setting: Setting) -> float | None:
    height, width = setting.size_hw
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--size", f"{height}x{width}", "--threads", f"{setting.threads}", "--memory",
         name, str(setting.folder)],
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed in its own process: {done.stderr.strip().splitlines()[-1]}")
    added: float | None = json.loads(done.stdout.splitlines()[-1])
    return added


def _memory_here(name: str, setting: Setting) -> float | None:
    """Peak memory in MiB above that of the imported libraries."""
    a, b = planes(setting.size_hw)
    if name.startswith("official") or name == "eager":
        import torch  # noqa: F401
    with MemoryWatch() as watch, open_peer(name, setting) as fuse:
        for _ in range(2):
            fuse(a, b)
        return watch.use().added_mib


if __name__ == "__main__":
    raise SystemExit(main())
