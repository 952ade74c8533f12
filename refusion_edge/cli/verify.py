"""``verify``: the accuracy gate again, on any bundle, on any pairs."""

from __future__ import annotations

import argparse
import math
from typing import Any

from refusion_edge.cli.options import add_json, add_threads, require_both

SUMMARY = "re-run the accuracy gate of a bundle, on the sample pairs or on your own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``verify``."""
    parser.add_argument("bundle", help="engine bundle")
    parser.add_argument("--a", metavar="PATH", help="source a of your own pairs: file, folder or quoted pattern")
    parser.add_argument("--b", metavar="PATH", help="source b of your own pairs")
    add_threads(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure every pair; exit code 1 if the worst of them breaks the limits of the precision."""
    from refusion_edge.bundle import WEIGHTS, read_bundle
    from refusion_edge.checkpoint import read_checkpoint
    from refusion_edge.cli.console import output, plain_table, progress_bar, write_json
    from refusion_edge.fidelity import LIMITS, worst
    from refusion_edge.fuser import open_bundle, open_weights
    from refusion_edge.gate import measure, resized
    from refusion_edge.pairs import find_pairs, read_pair
    from refusion_edge.samples import sample_paths
    from refusion_edge.tasks import find_task

    require_both(options.a, options.b, "--a and --b")
    bundle = read_bundle(options.bundle)
    manifest = bundle.manifest
    paths = find_pairs(options.a, options.b).pairs if options.a else sample_paths(manifest.task)
    pairs = (read_pair(pair) for pair in paths)
    height, width = manifest.inputs[0].shape[2:]
    if options.a is None and height is not None and width is not None:
        size_hw = (height, width)
        pairs = (resized(pair, size_hw) for pair in pairs)

    state = read_checkpoint(bundle.path / WEIGHTS).state
    with (
        open_bundle(bundle, threads=options.threads) as engine,
        open_weights(state, "onnxruntime", threads=options.threads, optimised=False) as reference,
        progress_bar() as progress,
    ):
        results = list(
            progress.track(measure(engine, reference, pairs, find_task(manifest.task)), len(paths), description="verifying")
        )
    overall = worst(result.fidelity for result in results)
    limits = LIMITS[manifest.precision]
    passed = limits.hold(overall)

    if options.json:
        write_json(options.json, {
            "schema": "refusion-edge/verify/1",
            "bundle": str(bundle.path),
            "precision": manifest.precision,
            "backend": manifest.backend,
            "passed": passed,
            "limits": {"psnr_db": limits.psnr_db, "ssim": limits.ssim, "max_error": limits.max_error},
            "pairs": {result.name: _numbers(result.fidelity) for result in results},
        })  # fmt: skip
    if options.json != "-":
        table = plain_table("pair", "PSNR (dB)", "SSIM", "max error (of 255)")
        for name, fidelity in [(result.name, result.fidelity) for result in results] + [("worst", overall)]:
            psnr = "equal" if math.isinf(fidelity.psnr_db) and fidelity.psnr_db > 0 else f"{fidelity.psnr_db:.1f}"
            table.add_row(name, psnr, f"{fidelity.ssim:.6f}", f"{fidelity.max_error:.3f}")
        output().print(table)
        output().print(
            f"{'PASSED' if passed else 'FAILED'}: {manifest.precision} on {manifest.backend} against fp32 ({limits})"
        )
    return 0 if passed else 1


def _numbers(fidelity: Any) -> dict[str, float | None]:
    finite = math.isfinite(fidelity.psnr_db)
    return {
        "psnr_db": fidelity.psnr_db if finite else None,
        "ssim": fidelity.ssim if math.isfinite(fidelity.ssim) else None,
        "max_error": fidelity.max_error if math.isfinite(fidelity.max_error) else None,
    }
