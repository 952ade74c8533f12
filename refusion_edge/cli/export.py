"""``export``: convert weights to another format; ONNX is traced with torch and compared with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_network, add_overwrite, add_task
from refusion_edge.network.forms import FORMS, REFERENCE

if TYPE_CHECKING:
    from refusion_edge.network.checkpoint import Checkpoint

SUMMARY = "write weights as ONNX (traced with torch), safetensors or official .pth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``export``."""
    parser.epilog = (
        "The suffix of the output selects the format. ONNX needs pip install 'refusion-edge[export]'; 'build' does not, "
        "because the traced graph ships with the package. The graph of the network fast needs only torch, to compare with."
    )
    add_task(parser)
    add_network(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights file: safetensors or official .pth (default: the bundled weights of the task)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="file ending in .onnx, .safetensors or .pth"
    )
    add_overwrite(parser, "output")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="precision of the ONNX graph (default: fp32)"
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        help=f"layout of the ONNX graph of the network refusion (default: {REFERENCE}, the official layout)",
    )
    parser.add_argument(
        "--size", default="dynamic", metavar="HxW", help="size of the ONNX graph, such as 480x640 (default: dynamic)"
    )


def run(options: argparse.Namespace) -> int:
    """Convert and write; for ONNX, print how much the graph differs from the network in torch."""
    from refusion_edge.cli.console import output
    from refusion_edge.errors import UsageError
    from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, require_network, write_pth, write_safetensors
    from refusion_edge.network.family import DEFAULT_NETWORK
    from refusion_edge.network.weights import weights_path

    if options.weights is None and options.task is None:
        raise UsageError("there is nothing to export", "add --task or --weights")
    path = options.weights or weights_path(options.task, options.network or DEFAULT_NETWORK)
    checkpoint = read_checkpoint(path)
    require_network(checkpoint, options.network, str(path))
    checkpoint = Checkpoint(options.task or checkpoint.task, checkpoint.state, checkpoint.notes)
    suffix = options.output.suffix.lower()
    if suffix == ".onnx":
        return _export_onnx(options, checkpoint)
    if suffix == ".safetensors":
        write_safetensors(options.output, checkpoint)
    elif suffix == ".pth":
        write_pth(options.output, checkpoint)
    else:
        raise UsageError(f"the format of {options.output} is unknown", "let --output end in .onnx, .safetensors or .pth")
    output().print(f"wrote {options.output}")
    return 0


def _export_onnx(options: argparse.Namespace, checkpoint: Checkpoint) -> int:
    from refusion_edge.cli.console import output, plain_table, remarks
    from refusion_edge.export.graph.trace import export_onnx
    from refusion_edge.sizes import parse_size

    with remarks().status("tracing, simplifying and comparing with torch"):
        parity = export_onnx(checkpoint, options.output, options.form, options.precision, parse_size(options.size))
    table = plain_table("pair", "size", "max difference", "mean difference")
    for row in parity:
        table.add_row(row.name, f"{row.size_hw[0]}x{row.size_hw[1]}", f"{row.max_difference:.2e}", f"{row.mean_difference:.2e}")
    output().print("Graph in ONNX Runtime against the network in torch (eager, fp32), output in [0, 1]:")
    output().print(table)
    output().print(f"wrote {options.output}")
    return 0
