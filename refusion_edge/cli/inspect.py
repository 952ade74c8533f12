"""``inspect``: describe a bundle, a weights file or a program file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refusion_edge.cli.options import add_json, add_network, add_overwrite

SUMMARY = "describe an engine bundle, a weights file, a program file or the weights of a task"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``inspect``."""
    parser.add_argument(
        "path",
        help="bundle folder, weights file (safetensors or .pth), program file (.rfx), or a task for the weights of the package",
    )
    add_network(parser)
    add_json(parser)
    add_overwrite(parser, "json")


def run(options: argparse.Namespace) -> int:
    """Check and describe a bundle or file; a damaged one raises an error."""
    from refusion_edge.cli.console import print_facts, write_json

    path = _path(options)
    describe = _bundle if not path.is_file() else _program if path.suffix == ".rfx" else _weights
    document = describe(path)
    if options.json:
        write_json(options.json, document)
    if options.json != "-":
        print_facts({name: text for key, value in document.items() for name, text in _flattened(key, value)})
    return 0


def _path(options: argparse.Namespace) -> Path:
    from refusion_edge.errors import UsageError
    from refusion_edge.network.weights import weights_path
    from refusion_edge.tasks import TASKS

    if options.path in TASKS:
        return weights_path(options.path, *([options.network] if options.network else []))
    if options.network is not None:
        raise UsageError("--network belongs to the name of a task; a file or a bundle has one network", "leave it out")
    return Path(options.path)


def _bundle(path: Path) -> dict[str, Any]:
    from refusion_edge.bundle.folder import read_bundle
    from refusion_edge.bundle.manifest import SCHEMA
    from refusion_edge.machine import this_machine

    bundle = read_bundle(path)
    manifest = bundle.manifest
    return {
        "schema": SCHEMA,
        "bundle": str(path),
        "runs_here": "yes" if manifest.target.fits(this_machine()) else f"no, this is {this_machine()}",
        "task": manifest.task,
        "network": manifest.spec.network,
        "precision": manifest.precision,
        "backend": manifest.backend,
        **{key: value for key, value in json.loads(manifest.to_json()).items() if key != "schema"},
        "target": str(manifest.target),
        "size": manifest.size_text,
        "rebuild": bundle.rebuild_command(),
    }


def _program(path: Path) -> dict[str, Any]:
    from refusion_edge.bundle.folder import sha256
    from refusion_edge.cuda.program import cuda_text
    from refusion_edge.cuda.program_file import MOST_BYTES, SCHEMA, parse_program
    from refusion_edge.errors import BundleError
    from refusion_edge.files import read_file

    data = read_file(path, kind="program file", most_bytes=MOST_BYTES, error=BundleError)
    program = parse_program(data, str(path))
    return {
        "schema": SCHEMA,
        "program": str(path),
        **program.model,
        "launches": len(program.schedule.launches),
        "kernels": len(program.schedule.kernels),
        "targets": {
            f"sm_{architecture}": f"driver for CUDA {cuda_text(target.driver_version)} or newer"
            for architecture, target in program.targets.items()
        },
        "sha256": sha256(data),
    }


def _weights(path: Path) -> dict[str, Any]:
    from refusion_edge.bundle.folder import sha256
    from refusion_edge.errors import CheckpointError
    from refusion_edge.files import read_file
    from refusion_edge.network.checkpoint import MOST_BYTES, SCHEMA, describe_format, parse_checkpoint

    data = read_file(path, kind="weights file", most_bytes=MOST_BYTES, error=CheckpointError)
    checkpoint = parse_checkpoint(data, path)
    return {
        "schema": SCHEMA,
        "weights": str(path),
        "format": describe_format(data),
        "task": checkpoint.task or "not stated",
        "network": checkpoint.network,
        "parameters": sum(array.size for array in checkpoint.state.values()),
        "tensors": len(checkpoint.state),
        "sha256": sha256(data),
        "notes": dict(checkpoint.notes),
    }


def _flattened(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield one line per leaf of a JSON value, named by its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flattened(f"{name}.{key}", item)
    elif isinstance(value, list):
        if not any(isinstance(item, dict) for item in value):
            yield name, ", ".join(map(str, value))
            return
        for tensor in value:
            yield f"{name}.{tensor['name']}", "x".join("any" if side is None else str(side) for side in tensor["shape"])
    else:
        yield name, str(value)
