"""``build``: build an engine bundle from weights, and write it only if it passes the accuracy gate."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.cli.options import add_json, add_network, add_overwrite, add_renamed, add_task
from refusion_edge.network.forms import PRECISIONS

if TYPE_CHECKING:
    from refusion_edge.bundle.manifest import Compiled
    from refusion_edge.bundle.spec import BuildSpec
    from refusion_edge.errors import MisfitError
    from refusion_edge.export.build import BuildReport

SUMMARY = "build an engine bundle from weights, and check its accuracy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``build``."""
    parser.epilog = (
        "The bundle is written only if its results on the sample pairs are close to those of the fp32 reference. Engines are "
        "cached in $REFUSION_EDGE_CACHE (default: refusion-edge in the user's cache folder) under a hash of everything that "
        "they depend on."
    )
    add_task(parser, default="ir_vis")
    add_network(parser)
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="precision of the engine (default: fp16, or fp32 for the network fast)"
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="back end to build for, see 'doctor' (default: auto)")
    parser.add_argument(
        "--size", default="dynamic", metavar="HxW",
        help="fixed size, such as 480x640, or for TensorRT a range MIN:OPT:MAX (default: dynamic)",
    )  # fmt: skip
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights file: safetensors or official .pth (default: the bundled weights of the task)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="bundle folder (default: bundles/TASK[-NETWORK]-PRECISION-BACKEND)"
    )
    parser.add_argument(
        "--arch",
        metavar="LIST",
        help="GPU architectures for the fused back end, such as sm_87,sm_110 (default: that of this machine)",
    )
    parser.add_argument(
        "--proxy", choices=("ptx", "reference"),
        help="how the accuracy gate runs a fused program without a GPU: ptx emulates its PTX; reference uses the CPU "
        "reference of each kernel (default: ptx if it fits --proxy-limit-s, otherwise reference)",
    )  # fmt: skip
    parser.add_argument(
        "--proxy-limit-s", type=float, metavar="S",
        help="use the emulator only if it is expected to take at most this many seconds (default: 60)",
    )  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="neither use a cached engine nor cache the new one")
    _add_compiler(parser)
    _add_int8(parser)
    add_json(parser)
    add_overwrite(parser, "json", what="an existing report, or the bundle of another build")


def _add_compiler(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TensorRT and TensorRT-RTX")
    group.add_argument("--workspace", type=int, metavar="MIB", help="scratch memory limit of one kernel, in MiB")
    group.add_argument("--opt-level", type=int, metavar="N", help="builder optimization level, 0 (quick) to 5 (thorough)")
    group.add_argument(
        "--form", choices=("folded", "literal"), default="folded", help="layout of the convolutions (default: folded)"
    )
    group.add_argument("--uint8-input", action="store_true", help="also accept uint8 inputs, for grayscale images and cameras")
    group.add_argument(
        "--uint8-output",
        choices=("stretch", "fixed"),
        help="also return uint8 results in this output range, for grayscale images",
    )
    add_renamed(group, "--pixels", "--uint8-input")
    add_renamed(group, "--levels", "--uint8-output")
    group.add_argument(
        "--plugins",
        action="store_true",
        help="compile our own kernels into the plan (fp16, TensorRT 10.9 or newer; needs Triton)",
    )
    group.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timing cache to read and update")
    group.add_argument("--version-compatible", action="store_true", help="build a plan that newer TensorRT releases can load")
    group.add_argument(
        "--compute-capability", default="", metavar="LIST", help="devices to build for, such as 8.6,8.9 (TensorRT-RTX only)"
    )


def _add_int8(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("int8")
    group.add_argument(
        "--calib-data", metavar="DIR",
        help="calibration data: a folder of real pairs (for ir_vis, with the subfolders ir and vis), the calibration.json of "
        "another bundle, or the word random for noise",
    )  # fmt: skip
    group.add_argument(
        "--calib-method", choices=("entropy", "percentile", "min-max"), default="min-max",
        help="how to choose the value ranges (default: min-max)",
    )  # fmt: skip


def spec_of(options: argparse.Namespace) -> BuildSpec:
    """The spec that the options of ``build`` describe, without calibration data, which must be read first."""
    from refusion_edge.backends.tensorrt.settings import PlanSettings
    from refusion_edge.bundle.spec import PROXY_LIMIT_S, BuildSpec
    from refusion_edge.machine import parse_architectures
    from refusion_edge.network.checkpoint import read_checkpoint
    from refusion_edge.network.family import DEFAULT_NETWORK
    from refusion_edge.sizes import parse_sizes

    network = options.network or DEFAULT_NETWORK
    # A missing file is reported by the build.
    if options.network is None and options.weights is not None and options.weights.is_file():
        network = read_checkpoint(options.weights).network
    size_hw, sizes_hw = parse_sizes(options.size)
    return BuildSpec(
        task=options.task,
        precision=options.precision or ("fp16" if network == DEFAULT_NETWORK else "fp32"),
        network=network,
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
        proxy=options.proxy,
        proxy_limit_s=PROXY_LIMIT_S if options.proxy_limit_s is None else options.proxy_limit_s,
    )


def run(options: argparse.Namespace) -> int:
    """Build, then print where the bundle is, what the gate measured and a command to try next."""
    from refusion_edge.cli.calibrate import calibrate
    from refusion_edge.cli.console import BuildProgress, progress_bar, write_json
    from refusion_edge.export.build import build

    spec = spec_of(options)
    with progress_bar() as progress:
        shown = BuildProgress(progress)
        if options.calib_data is not None:
            table, gate_pairs = calibrate(options, spec.network, shown)
            spec = replace(spec, calibration=table, gate_pairs=gate_pairs)
        report = build(spec, shown.enter, shown, overwrite=options.overwrite)
    if options.json:
        write_json(options.json, _document(report))
    if options.json != "-":
        print_report(report)
    return 0


def rebuild(path: str, reason: MisfitError) -> None:
    """Rebuild a bundle in place because its engine does not fit this machine, and print what was built.

    Raises:
        RefusionError: It cannot be built here; the bundle is unchanged.
    """
    from refusion_edge.bundle.folder import read_bundle
    from refusion_edge.cli.console import BuildProgress, progress_bar, remarks
    from refusion_edge.export.build import rebuild

    remarks().print(f"rebuilding: {reason}")
    with progress_bar() as progress:
        shown = BuildProgress(progress)
        report = rebuild(read_bundle(path), shown.enter, shown)
    print_report(report)


def print_report(report: BuildReport) -> None:
    """Print what a build did, and a command to try next."""
    from refusion_edge.accuracy.gate import LIMITS
    from refusion_edge.bundle.manifest import GateNotRun
    from refusion_edge.cli.console import output, plain_table

    manifest = report.bundle.manifest
    console = output()
    for sentence in (f"Back end: {report.choice.reason}", *report.remarks):
        console.print(sentence)
    not_run, ran = None, ""
    if isinstance(manifest.gate, GateNotRun):
        not_run, ran = manifest.gate.not_run, manifest.gate.proxy_name or "its model on the CPU"
    if report.cached and not report.gate:
        gate = manifest.gate.proxy if isinstance(manifest.gate, GateNotRun) else manifest.gate
        psnr = "equal" if gate.psnr_db is None else f"{gate.psnr_db:.1f} dB"
        whose = "its accuracy gate" if not_run is None else f"the accuracy gate of {ran}"
        console.print(f"Engine taken from the cache; {whose} passed earlier on {gate.pairs} pairs (PSNR {psnr}).")
    else:
        table = plain_table("pair", "PSNR (dB)", "SSIM", "max error (of 255)")
        for result in report.gate:
            fidelity = result.fidelity
            table.add_row(result.name, f"{fidelity.psnr_db:.1f}", f"{fidelity.ssim:.6f}", f"{fidelity.max_error:.3f}")
        limits = LIMITS[manifest.precision]
        if report.cached:
            console.print("Engine taken from the cache; its accuracy gate was rerun.")
        whose = "" if not_run is None else f", {ran},"
        console.print(f"Accuracy gate passed: {manifest.precision}{whose} against the fp32 reference ({limits}).")
        console.print(table)
    if not_run is not None:
        console.print(f"The engine itself was not run: {not_run}. The first command that loads it will run its accuracy gate.")
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
    output().print(f"Plan: {plan_mb:.1f} MB; scratch memory at {bundle.manifest.size_text}: at most {scratch}")
    if compiled.command:
        output().print(f"Equivalent command in {bundle.path}: {compiled.command}")


def _document(report: BuildReport) -> dict[str, Any]:
    from refusion_edge.accuracy.gate import LIMITS

    compiled = report.bundle.manifest.compiled
    return {
        "schema": "refusion-edge/build/1",
        "backend": report.choice.name,
        "reason": report.choice.reason,
        "bundle": str(report.bundle.path),
        "precision": report.bundle.manifest.precision,
        "network": report.bundle.manifest.spec.network,
        "gate": asdict(report.bundle.manifest.gate),
        "compiled": None if compiled is None else asdict(compiled),
        "limits": asdict(LIMITS[report.bundle.manifest.precision]),
        "cached": report.cached,
        "remarks": list(report.remarks),
        "stages_s": report.stages_s,
    }
