"""``verify``: rerun the accuracy gate of any bundle, on any pairs."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from refusion_edge.cli.options import (
    add_json,
    add_network,
    add_overwrite,
    add_renamed,
    add_threads,
    add_trust_engine,
    require_both,
)

if TYPE_CHECKING:
    from refusion_edge.bundle.folder import EngineBundle
    from refusion_edge.images.pairs import ImagePair

SUMMARY = "rerun the accuracy gate of a bundle, on the sample pairs or on your own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``verify``."""
    parser.add_argument("bundle", help="engine bundle")
    add_network(parser)
    add_trust_engine(parser)
    parser.add_argument("--a", metavar="PATH", help="source a of your own pairs: file, folder or quoted pattern")
    parser.add_argument("--b", metavar="PATH", help="source b of your own pairs")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="reference weights, in case those in the bundle are damaged like its engine (default: those in the bundle)",
    )
    parser.add_argument(
        "--proxy",
        action="store_true",
        help="run the CPU proxy of an engine that needs a device: the ONNX model of a plan, the launches of a program",
    )
    add_renamed(parser, "--simulate", "--proxy")
    parser.add_argument(
        "--per-layer", action="store_true",
        help="int8 only: run the gate on the CPU with one layer at a time in INT8, and list the most sensitive layer first",
    )  # fmt: skip
    add_threads(parser)
    add_json(parser)
    add_overwrite(parser, "json")


def run(options: argparse.Namespace) -> int:
    """Measure every pair; exit code 1 if the worst pair exceeds the limits of the precision."""
    from refusion_edge.accuracy.gate import LIMITS, changed_weights, measure, resized, worst
    from refusion_edge.backends.onnxruntime import open_reference
    from refusion_edge.backends.registry import RunOptions
    from refusion_edge.bundle.folder import read_bundle
    from refusion_edge.bundle.manifest import WEIGHTS, GateNotRun
    from refusion_edge.cli.console import output, plain_table, progress_bar, write_json
    from refusion_edge.export.build import BUILDERS, model_of
    from refusion_edge.fuser import open_bundle
    from refusion_edge.images.depth import read_pairs
    from refusion_edge.images.pairs import find_pairs
    from refusion_edge.images.samples import sample_paths
    from refusion_edge.network.checkpoint import read_checkpoint, require_network
    from refusion_edge.tasks import find_task

    require_both(options.a, options.b, "--a and --b")
    bundle = read_bundle(options.bundle)
    manifest = bundle.manifest
    paths = find_pairs(options.a, options.b).pairs if options.a else sample_paths(manifest.task)
    pairs = read_pairs(paths, find_task(manifest.task))
    if options.a is None and (size_hw := manifest.gate_hw) is not None:
        pairs = (resized(pair, size_hw) for pair in pairs)
    if options.per_layer:
        return _per_layer(options, bundle, list(pairs))

    checkpoint = read_checkpoint(options.weights or bundle.path / WEIGHTS)
    for network in (options.network, manifest.spec.network):
        require_network(checkpoint, network, str(options.weights or bundle.path))
    state = checkpoint.state
    how, instead = RunOptions(options.threads), None
    if options.proxy:
        instead = BUILDERS[manifest.backend].proxy(bundle.engine(), model_of(bundle), threads=options.threads)
    with (
        open_bundle(bundle, options=how, run_gate=False) if instead is None else instead.open() as engine,
        open_reference(state, options.threads) as reference,
        progress_bar() as progress,
    ):
        results = list(
            progress.track(measure(engine, reference, pairs, find_task(manifest.task)), len(paths), description="verifying")
        )
    overall = worst(result.fidelity for result in results)
    limits = LIMITS[manifest.precision]
    built = manifest.gate.proxy if isinstance(manifest.gate, GateNotRun) else manifest.gate
    changed = changed_weights(results, built) if options.weights is None else None
    passed = limits.hold(overall) and not changed

    if options.json:
        write_json(options.json, {
            "schema": "refusion-edge/verify/2",
            "bundle": str(bundle.path),
            "precision": manifest.precision,
            "backend": manifest.backend,
            "network": manifest.spec.network,
            "proxy": instead is not None,
            "passed": passed,
            "weights": str(options.weights or "of the bundle"),
            "weights_changed": changed,
            "limits": {"psnr_db": limits.psnr_db, "ssim": limits.ssim, "max_error": limits.max_error},
            "pairs": {result.name: _numbers(result.fidelity) for result in results},
        })  # fmt: skip
    if options.json != "-":
        table = plain_table("pair", "PSNR (dB)", "SSIM", "max error (of 255)")
        for name, fidelity in [(result.name, result.fidelity) for result in results] + [("worst", overall)]:
            psnr = "equal" if math.isinf(fidelity.psnr_db) and fidelity.psnr_db > 0 else f"{fidelity.psnr_db:.1f}"
            table.add_row(name, psnr, f"{fidelity.ssim:.6f}", f"{fidelity.max_error:.3f}")
        output().print(table)
        where = manifest.backend if instead is None else instead.name
        if changed:
            output().print(
                "The weights in this bundle are not the ones it was built from: they fuse the same pairs into different images."
            )
        elif changed is None and options.weights is None:
            output().print(
                "Note: the bundle has no record of how its weights fuse these pairs, so the weights were not checked."
            )
        output().print(f"{'PASSED' if passed else 'FAILED'}: {manifest.precision} on {where} against fp32 ({limits})")
    return 0 if passed else 1


def _per_layer(options: argparse.Namespace, bundle: EngineBundle, pairs: list[ImagePair]) -> int:
    from refusion_edge.backends.registry import BACKENDS
    from refusion_edge.bundle.manifest import CALIBRATION, WEIGHTS
    from refusion_edge.cli.console import output, plain_table, progress_bar, write_json
    from refusion_edge.errors import UsageError
    from refusion_edge.export.graph.int8 import Evaluator, scan_layers
    from refusion_edge.network.checkpoint import read_checkpoint
    from refusion_edge.network.family import make_model
    from refusion_edge.network.quantization import quantizable_layers, read_table
    from refusion_edge.tasks import find_task

    manifest = bundle.manifest
    if manifest.quantized is None:
        raise UsageError(
            f"--per-layer needs an int8 bundle, and {bundle.path} is {manifest.precision}",
            "leave --per-layer out",
            expected="int8",
            got=manifest.precision,
        )
    state = read_checkpoint(bundle.path / WEIGHTS).state
    layers = quantizable_layers(state)
    table = read_table(bundle.read(CALIBRATION).decode(), str(bundle.path / CALIBRATION), layers)
    form = BACKENDS[manifest.backend].form(manifest.spec.network, manifest.precision)
    model = make_model(form, manifest.precision, state)
    evaluator = Evaluator(state, pairs, find_task(manifest.task), threads=options.threads)
    with progress_bar() as progress:
        bar = progress.add_task("one layer at a time", total=len(layers))
        scan = scan_layers(model, table, evaluator, lambda: progress.advance(bar))
    if options.json:
        write_json(options.json, {
            "schema": "refusion-edge/verify-layers/1",
            "bundle": str(bundle.path),
            "pairs": min(len(pairs), evaluator.scanned),
            "layers": {layer: _numbers(fidelity) for layer, fidelity in scan.items()},
            "int8": list(manifest.quantized.int8),
        })  # fmt: skip
    if options.json != "-":
        table_of_layers = plain_table("layer alone in INT8", "PSNR (dB)", "SSIM", "max error (of 255)", "in this engine")
        for layer, fidelity in scan.items():
            kind = "int8" if layer in manifest.quantized.int8 else "fp16"
            table_of_layers.add_row(layer, f"{fidelity.psnr_db:.1f}", f"{fidelity.ssim:.6f}", f"{fidelity.max_error:.3f}", kind)
        output().print(table_of_layers)
    return 0


def _numbers(fidelity: Any) -> dict[str, float | None]:
    finite = math.isfinite(fidelity.psnr_db)
    return {
        "psnr_db": fidelity.psnr_db if finite else None,
        "ssim": fidelity.ssim if math.isfinite(fidelity.ssim) else None,
        "max_error": fidelity.max_error if math.isfinite(fidelity.max_error) else None,
    }
