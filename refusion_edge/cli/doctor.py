"""``doctor``: show what works on this machine - back ends, cameras, outputs, extras - and what the rest needs."""

from __future__ import annotations

import argparse
import platform
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_json, add_overwrite

if TYPE_CHECKING:
    from refusion_edge.backends.registry import Status
    from refusion_edge.stream.sources.v4l2_device import Camera

SUMMARY = "show which back ends, cameras, outputs and extras work on this machine, and what the others need"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    add_json(parser)
    add_overwrite(parser, "json")


def run(options: argparse.Namespace) -> int:
    """Print the machine, and the tables of back ends, cameras, outputs and extras. Changes nothing."""
    from dataclasses import asdict

    from refusion_edge._version import __version__
    from refusion_edge.backends.registry import BACKENDS, build_status, status
    from refusion_edge.cli.console import output, plain_table, print_facts, write_json
    from refusion_edge.machine import accelerator, missing_packages, processor, this_machine, usable_cores
    from refusion_edge.stream.run.equipment import find_equipment
    from refusion_edge.stream.sources.v4l2_device import find_cameras

    machine = {
        "refusion-edge": __version__,
        "python": platform.python_version(),
        "system": str(this_machine()),
        "processor": processor(),
        "cores": usable_cores(),
        "nvidia_device": accelerator(),
    }
    found = {name: status(name) for name in BACKENDS}
    cameras, equipment, extras = find_cameras(), find_equipment(), missing_packages()
    builds = {name: entry.builds and build_status(name).usable for name, entry in BACKENDS.items()}
    if options.json:
        backends = {name: _facts(item, builds[name]) for name, item in found.items()}
        facts = {
            "machine": machine,
            "backends": backends,
            "cameras": [asdict(camera) for camera in cameras],
            "streams": {name: _facts(item) for name, item in equipment.items()},
            "extras": {name: {"installed": not missing, "missing": list(missing)} for name, missing in extras.items()},
        }
        write_json(options.json, {"schema": "refusion-edge/doctor/1", **facts})
    if options.json != "-":
        console = output()
        print_facts({name.replace("_", " "): value for name, value in machine.items()})
        console.print()
        table = plain_table("back end", "usable", "description", "status", "fix")
        for name, item in found.items():
            table.add_row(name, _answer(item, builds[name]), BACKENDS[name].summary, item.reason, item.fix)
        console.print(table)
        console.print()
        table = plain_table("camera", "name", "formats (height x width @ rate)")
        for camera in cameras:
            table.add_row(camera.stable_path or camera.path, camera.card, camera.problem or _formats(camera))
        if not cameras:
            table.add_row("none", "", "no USB camera at /dev/video*")
        console.print(table)
        console.print()
        table = plain_table("for streams", "usable", "status", "fix")
        for name, item in equipment.items():
            table.add_row(name, "yes" if item.usable else "no", item.reason, item.fix)
        console.print(table)
        console.print()
        table = plain_table("extra", "installed", "missing", "fix")
        for name, missing in extras.items():
            fix = f"pip install 'refusion-edge[{name}]'" if missing else ""
            table.add_row(name, "no" if missing else "yes", ", ".join(missing), fix)
        console.print(table)
        console.print()
        console.print("next: refusion-edge build --task ir_vis --precision fp16")
    return 0


def _answer(found: Status, builds: bool) -> str:
    return "yes" if found.usable else "builds only" if builds else "no"


def _formats(camera: Camera) -> str:
    """The formats of a camera, each with its sizes and the fastest rate of each size."""
    fastest: dict[tuple[str, str], float] = {}
    for mode in camera.modes:
        key = mode.fourcc.strip(), f"{mode.height}x{mode.width}"
        fastest[key] = max(fastest.get(key, 0.0), mode.rate_hz or 0.0)
    texts: dict[str, list[str]] = {}
    for (fourcc, size), rate_hz in fastest.items():
        texts.setdefault(fourcc, []).append(f"{size}@{rate_hz:.4g}" if rate_hz else size)
    return "; ".join(f"{fourcc} {', '.join(sizes)}" for fourcc, sizes in texts.items()) or "none"


def _facts(found: Status, builds: bool | None = None) -> dict[str, object]:
    known = {} if builds is None else {"builds": builds}
    return {"usable": found.usable, **known, "reason": found.reason, "fix": found.fix or None}
