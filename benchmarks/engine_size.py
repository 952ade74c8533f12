"""Build TensorRT-RTX engines of one size in every form and precision; print plan size and scratch memory, and check the goal.

Run as ``python -m benchmarks.engine_size`` from the repository's root; needs the extra ``rtx`` and no device. Nothing is run:
the compiler reports how much memory a run will need. The ranges of the INT8 engine come from noise, because sizes do not
depend on them. Every engine is built in its own process, because a build can affect the next one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
from pathlib import Path

from refusion_edge import __version__
from refusion_edge.backends.tensorrt.product import TENSORRT_RTX, installed_version
from refusion_edge.backends.tensorrt.settings import NO_SETTINGS
from refusion_edge.calibration.int8 import collect, random_pairs
from refusion_edge.export.graph.int8 import quantize
from refusion_edge.export.targets.tensorrt import compile_plan
from refusion_edge.files import write_atomically
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.forms import GraphPrecision
from refusion_edge.network.graph import fill, read_template
from refusion_edge.network.weights import weights_path
from refusion_edge.sizes import DYNAMIC, parse_size
from refusion_edge.tasks import find_task

# fp16, in MB of scratch memory at 640x480.
GOAL_MB = 337
_FORMS = ("folded", "literal")
_PRECISIONS: tuple[GraphPrecision, ...] = ("fp32", "fp16")
_TASK = "ir_vis"

Row = dict[str, str | int | None]


def main() -> int:
    """Print one row per engine; returns 1 if the fp16 engine of the default form misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="480x640", help="height x width, or dynamic (default: 480x640)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    wanted = [(form, precision) for form in _FORMS for precision in _PRECISIONS] + [("folded", "int8")]
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    for form, precision in wanted:
        with context.Pool(1) as pool:
            rows.append(pool.apply(_build, (form, precision, options.size)))
    version = installed_version(TENSORRT_RTX)
    print(
        f"tensorrt_rtx {version}, {options.size}, weights of {_TASK}, built on {platform.machine()} without a device, never run"
    )
    for row in rows:
        scratch = "unknown" if row["scratch_bytes"] is None else f"{int(row['scratch_bytes']) / 1e6:7.1f} MB"
        print(f"{row['form']:8} {row['precision']:5} plan {int(row['plan_bytes'] or 0) / 1e6:6.2f} MB   scratch {scratch}")
    if options.json is not None:
        document = {
            "schema": "refusion-edge/engine-size/1", "refusion-edge": __version__, "tensorrt_rtx": version,
            "size": options.size, "engines": rows,
        }  # fmt: skip
        write_atomically(options.json, (json.dumps(document, indent=2) + "\n").encode())
    (default,) = (row for row in rows if (row["form"], row["precision"]) == ("folded", "fp16"))
    met = default["scratch_bytes"] is not None and int(default["scratch_bytes"]) <= GOAL_MB * 1e6
    if options.size == "480x640":
        print(f"goal: fp16 scratch at most {GOAL_MB} MB: {'met' if met else 'missed'}")
        return 0 if met else 1
    return 0


def _build(form: str, precision: str, size: str) -> Row:
    size_hw = parse_size(size)
    state = read_checkpoint(weights_path(_TASK)).state
    template = read_template(f"tensorrt-{form}", "fp32" if precision == "fp32" else "fp16")
    model = fill(template, state, size_hw)
    if precision == "int8":
        task = find_task(_TASK)
        observed = fill(read_template("tensorrt-folded", "fp32"), state)
        model = quantize(model, collect(observed, random_pairs(task), task, "min-max", random=True))
    plan = compile_plan(TENSORRT_RTX, model.SerializeToString(), NO_SETTINGS, None if size_hw else DYNAMIC)
    return {"form": form, "precision": precision, "plan_bytes": len(plan.data), "scratch_bytes": plan.scratch_bytes}


if __name__ == "__main__":
    raise SystemExit(main())
