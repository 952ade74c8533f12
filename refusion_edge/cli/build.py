"""``build``: weights to an engine bundle that passed the accuracy gate."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.cli.options import add_json, add_renamed, add_task
from refusion_edge.network.layouts import PRECISIONS

if TYPE_CHECKING:
    from refusion_edge.bundle.manifest import Compiled
    from refusion_edge.export.build import BuildReport
    from refusion_edge.export.spec import BuildSpec

SUMMARY = "build an engine bundle from weights, and check its accuracy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``build``."""
    parser.epilog = (
        "The bundle is written only if the fused sample pairs are close to the fp32 reference. Engines are cached under "
        "$REFUSION_EDGE_CACHE (default: refusion-edge in the user's cache folder) by a hash of all they are made from."
    )
    add_task(parser, default="ir_vis")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="precision of the engine (default: fp16)")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="back end to build for, see 'doctor' (default: auto)")
    parser.add_argument(
        "--size", default="dynamic", metavar="HxW",
        help="fixed size, such as 480x640, dynamic (default), or MIN:OPT:MAX for TensorRT",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="safetensors or official .pth (default: those of the package)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="bundle folder (default: bundles/TASK-PRECISION-BACKEND)"
    )
    parser.add_argument(
        "--arch",
        metavar="LIST",
        help="GPU architectures for fused, such as sm_87,sm_110 (default: this machine's)",
    )
    parser.add_argument("--no-cache", action="store_true", help="build anew, and do not store the engine for later builds")
    _add_compiler(parser)
    _add_int8(parser)
    add_json(parser)


def _add_compiler(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TensorRT and TensorRT-RTX")
    group.add_argument("--workspace", type=int, metavar="MIB", help="most scratch memory of one kernel, in MiB")
    group.add_argument("--opt-level", type=int, metavar="N", help="builder optimization level, 0 (quick) to 5 (thorough)")
    group.add_argument(
        "--form", choices=("folded", "literal"), default="folded", help="layout of the convolutions (default: folded)"
    )
    group.add_argument("--uint8-input", action="store_true", help="also accept uint8 sources, for grey images and cameras")
    group.add_argument(
        "--uint8-output", choices=("stretch", "fixed"), help="also give uint8 results, in this output range, for grey images"
    )
    add_renamed(group, "--pixels", "--uint8-input")
    add_renamed(group, "--levels", "--uint8-output")
    group.add_argument(
        "--plugins", action="store_true", help="put our own kernels into the plan (TensorRT 10.9 and newer, fp16; needs Triton)"
    )
    group.add_argument("--timing-cache", type=Path, metavar="FILE", help="timings of kernels, read and written")
    group.add_argument("--version-compatible", action="store_true", help="let newer TensorRT releases load the plan")
    group.add_argument(
        "--compute-capability", default="", metavar="LIST", help="devices to build for, such as 8.6,8.9 (TensorRT-RTX only)"
    )


def _add_int8(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("int8")
    group.add_argument(
        "--calib-data", metavar="DIR",
        help="folder with real pairs (for ir_vis the folders ir and vis in it), calibration.json of an older bundle, or the "
        "word random for noise",
    )  # fmt: skip
    group.add_argument(
        "--calib-method", choices=("entropy", "percentile", "min-max"), default="min-max",
        help="how ranges are chosen (default: min-max)",
    )  # fmt: skip


def spec_of(options: argparse.Namespace) -> BuildSpec:
    """What the options of ``build`` ask for, all but calibration data, which has to be read first."""
    from refusion_edge.backends.tensorrt.settings import PlanSettings
    from refusion_edge.export.spec import BuildSpec
    from refusion_edge.machine import parse_architectures
    from refusion_edge.sizes import parse_sizes

    size_hw, sizes_hw = parse_sizes(options.size)
    return BuildSpec(
        task=options.task,
        precision=options.precision,
        form=None if options.form == "folded" else f"tensorrt-{options.form}",
        backend=options.backend,
        size_hw=size_hw,
        weights=options.weights,
        output=options.output,
        use_cache=not options.no_cache,
        sizes_hw=sizes_hw,
        settings=PlanSettings(
            workspace_mib=options.workspace,
            optimization_level=options.opt_level,
            version_compatible=options.version_compatible,
            compute_capabilities=tuple(text for text in options.compute_capability.split(",") if text),
            timing_cache=options.timing_cache,
            uint8_input=options.uint8_input,
            uint8_output=options.uint8_output,
            plugins=options.plugins,
        ),
        architectures=None if options.arch is None else parse_architectures(options.arch),
    )


def run(options: argparse.Namespace) -> int:
    """Build, then say where the bundle is, what the gate measured and what to type next."""
    from refusion_edge.cli.calibrate import calibrate
    from refusion_edge.cli.console import progress_bar, write_json
    from refusion_edge.cli.progress import BuildProgress
    from refusion_edge.export.build import build

    spec = spec_of(options)
    with progress_bar() as progress:
        shown = BuildProgress(progress)
        if options.calib_data is not None:
            table, judges = calibrate(options, shown)
            spec = replace(spec, calibration=table, judges=judges)
        report = build(spec, shown.enter, shown)
    if options.json:
        write_json(options.json, _document(report))
    if options.json != "-":
        print_report(report)
    return 0


def print_report(report: BuildReport) -> None:
    """Say what a build did, and what to type next."""
    from refusion_edge.accuracy.fidelity import LIMITS
    from refusion_edge.bundle.manifest import GateNotRun
    from refusion_edge.cli.console import output, plain_table

    manifest = report.bundle.manifest
    console = output()
    for sentence in (f"Back end: {report.choice.reason}", *report.remarks):
        console.print(sentence)
    if manifest.backend == "onnxruntime" and manifest.precision == "fp16":
        console.print(
            "Note: on a CPU, ONNX Runtime computes fp16 in fp32 steps; this bundle has fp16's rounding here, not its speed."
        )
    not_run = manifest.gate.not_run if isinstance(manifest.gate, GateNotRun) else None
    if report.cached and not report.gate:
        gate = manifest.gate.proxy if isinstance(manifest.gate, GateNotRun) else manifest.gate
        psnr = "equal" if gate.psnr_db is None else f"{gate.psnr_db:.1f} dB"
        whose = "its gate" if not_run is None else "the gate of its model on the CPU"
        console.print(f"Engine taken from the cache; {whose} had passed on {gate.pairs} pairs (PSNR {psnr}).")
    else:
        table = plain_table("pair", "PSNR (dB)", "SSIM", "max error (of 255)")
        for result in report.gate:
            fidelity = result.fidelity
            table.add_row(result.name, f"{fidelity.psnr_db:.1f}", f"{fidelity.ssim:.6f}", f"{fidelity.max_error:.3f}")
        limits = LIMITS[manifest.precision]
        if report.cached:
            console.print("Engine taken from the cache; its gate ran again.")
        whose = "" if not_run is None else ", the engine's model on the CPU,"
        console.print(f"Accuracy gate passed: {manifest.precision}{whose} against the fp32 reference ({limits}).")
        console.print(table)
    if not_run is not None:
        console.print(f"The engine itself was not run: {not_run}. The first command that loads it runs the gate on it.")
    if manifest.compiled is not None:
        _print_compiled(report, manifest.compiled)
    console.print("Stages: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.stages_s.items()))
    console.print(f"Bundle: {report.bundle.path}")
    console.print(f"Next:   refusion-edge fuse A.png B.png -o fused.png --bundle {report.bundle.path}")


def _print_compiled(report: BuildReport, compiled: Compiled) -> None:
    from refusion_edge.cli.console import output

    bundle = report.bundle
    plan_mb = (bundle.path / bundle.manifest.engine).stat().st_size / 1e6
    scratch = "unknown" if compiled.scratch_bytes is None else f"{compiled.scratch_bytes / 1e6:.0f} MB"
    output().print(f"Plan: {plan_mb:.1f} MB; scratch memory of a run at {bundle.manifest.size_text}, at most: {scratch}")
    if compiled.command:
        output().print(f"The same by hand, in {bundle.path}: {compiled.command}")


def _document(report: BuildReport) -> dict[str, Any]:
    from refusion_edge.accuracy.fidelity import LIMITS

    compiled = report.bundle.manifest.compiled
    return {
        "schema": "refusion-edge/build/1",
        "backend": report.choice.name,
        "reason": report.choice.reason,
        "bundle": str(report.bundle.path),
        "precision": report.bundle.manifest.precision,
        "gate": asdict(report.bundle.manifest.gate),
        "compiled": None if compiled is None else asdict(compiled),
        "limits": asdict(LIMITS[report.bundle.manifest.precision]),
        "cached": report.cached,
        "remarks": list(report.remarks),
        "stages_s": report.stages_s,
    }
