"""``doctor``: show which back ends work on this machine, and how to fix the others. Changes nothing."""

from __future__ import annotations

import argparse
import platform
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_json

if TYPE_CHECKING:
    from refusion_edge.backends.registry import Status

SUMMARY = "show which back ends work on this machine, and how to fix the others"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the machine and the table of back ends."""
    from refusion_edge._version import __version__
    from refusion_edge.backends.registry import BACKENDS, build_status, status
    from refusion_edge.cli.console import output, plain_table, print_facts, write_json
    from refusion_edge.machine import accelerator, processor, this_machine, usable_cores

    machine = {
        "refusion-edge": __version__,
        "python": platform.python_version(),
        "system": str(this_machine()),
        "processor": processor(),
        "cores": usable_cores(),
        "nvidia_device": accelerator(),
    }
    found = {name: status(name) for name in BACKENDS}
    builds = {name: entry.builds and build_status(name).usable for name, entry in BACKENDS.items()}
    if options.json:
        backends = {name: _facts(item, builds[name]) for name, item in found.items()}
        write_json(options.json, {"schema": "refusion-edge/doctor/1", "machine": machine, "backends": backends})
    if options.json != "-":
        console = output()
        print_facts({name.replace("_", " "): value for name, value in machine.items()})
        console.print()
        table = plain_table("back end", "usable", "description", "status", "fix")
        for name, item in found.items():
            table.add_row(name, _answer(item, builds[name]), BACKENDS[name].summary, item.reason, item.fix)
        console.print(table)
        console.print()
        console.print("next: refusion-edge build --task ir_vis --precision fp16")
    return 0


def _answer(found: Status, builds: bool) -> str:
    return "yes" if found.usable else "builds only" if builds else "no"


def _facts(found: Status, builds: bool) -> dict[str, object]:
    return {"usable": found.usable, "builds": builds, "reason": found.reason, "fix": found.fix or None}
