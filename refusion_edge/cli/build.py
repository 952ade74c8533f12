"""``build``: weights to an engine bundle that passed the accuracy gate."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.cli.options import add_json, add_task

if TYPE_CHECKING:
    from refusion_edge.export.build import BuildReport

SUMMARY = "build an engine bundle from weights, and check its accuracy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``build``."""
    parser.epilog = (
        "The bundle is written only if the fused sample pairs are close to the fp32 reference. Engines are cached under "
        "$REFUSION_EDGE_CACHE (default: refusion-edge in the user's cache folder) by a hash of all they are made from."
    )
    add_task(parser, default="ir_vis")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16", help="precision of the engine (default: fp16)")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="back end to build for, see 'doctor' (default: auto)")
    parser.add_argument("--size", default="dynamic", metavar="HxW", help="fixed size, such as 480x640, or dynamic (default)")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="safetensors or official .pth (default: those of the package)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="bundle folder (default: bundles/TASK-PRECISION-BACKEND)"
    )
    parser.add_argument(
        "--arch",
        metavar="LIST",
        help="GPU architectures for the back end fused, such as sm_87,sm_110 (default: this machine's)",
    )
    parser.add_argument("--no-cache", action="store_true", help="build anew, and do not store the engine for later builds")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Build, then say where the bundle is, what the gate measured and what to type next."""
    from refusion_edge.architectures import parse_architectures
    from refusion_edge.cli.console import remarks, write_json
    from refusion_edge.export.build import BuildSpec, build
    from refusion_edge.graph import parse_size

    spec = BuildSpec(
        task=options.task,
        precision=options.precision,
        backend=options.backend,
        size_hw=parse_size(options.size),
        weights=options.weights,
        output=options.output,
        use_cache=not options.no_cache,
        architectures=None if options.arch is None else parse_architectures(options.arch),
    )
    console = remarks()
    with console.status("building") as status:
        report = build(spec, lambda stage: status.update(f"building: {stage}"))
    if options.json:
        write_json(options.json, _document(report))
    if options.json != "-":
        _print(report)
    return 0


def _print(report: BuildReport) -> None:
    from refusion_edge.cli.console import output, plain_table
    from refusion_edge.fidelity import LIMITS

    manifest = report.bundle.manifest
    console = output()
    for sentence in (f"Back end: {report.choice.reason}", *report.remarks):
        console.print(sentence)
    if manifest.backend == "onnxruntime" and manifest.precision == "fp16":
        console.print(
            "Note: on a CPU, ONNX Runtime computes fp16 in fp32 steps; this bundle has fp16's rounding here, not its speed."
        )
    if report.cached:
        gate = manifest.gate
        psnr = "equal" if gate.psnr_db is None else f"{gate.psnr_db:.1f} dB"
        console.print(f"Engine taken from the cache; its gate had passed on {gate.pairs} pairs (PSNR {psnr}).")
    else:
        table = plain_table("pair", "PSNR (dB)", "SSIM", "max error (of 255)")
        for result in report.gate:
            fidelity = result.fidelity
            table.add_row(result.name, f"{fidelity.psnr_db:.1f}", f"{fidelity.ssim:.6f}", f"{fidelity.max_error:.3f}")
        console.print(f"Accuracy gate passed: {manifest.precision} against the fp32 reference ({LIMITS[manifest.precision]}).")
        console.print(table)
    console.print("Stages: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.stages_s.items()))
    console.print(f"Bundle: {report.bundle.path}")
    console.print(f"Next:   refusion-edge fuse A.png B.png -o fused.png --bundle {report.bundle.path}")


def _document(report: BuildReport) -> dict[str, Any]:
    from refusion_edge.fidelity import LIMITS

    return {
        "schema": "refusion-edge/build/1",
        "backend": report.choice.name,
        "reason": report.choice.reason,
        "bundle": str(report.bundle.path),
        "precision": report.bundle.manifest.precision,
        "gate": asdict(report.bundle.manifest.gate),
        "limits": asdict(LIMITS[report.bundle.manifest.precision]),
        "cached": report.cached,
        "remarks": list(report.remarks),
        "stages_s": report.stages_s,
    }
