"""``--rebuild``: an engine that does not fit this machine is built again in its place, and only where that is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def add_rebuild(parser: argparse.ArgumentParser) -> None:
    """Add ``--rebuild``."""
    parser.add_argument(
        "--rebuild", action="store_true",
        help="if the engine of --bundle was built for another machine, GPU, driver or version, build it again in its place, "
        "as it was built before (default: say so and end)",
    )  # fmt: skip


def open_or_rebuild(options: argparse.Namespace, opened: Callable[[], _T]) -> _T:
    """Open the engine of a command; build its bundle again if it does not fit this machine and ``--rebuild`` says so.

    Args:
        options: Options of the command, among them ``bundle`` and ``rebuild``.
        opened: Opens the engine.

    Raises:
        UsageError: There is no bundle to build again.
        RefusionError: It cannot be opened for another reason, or not built here; the old bundle is as it was.
    """
    from refusion_edge.errors import MisfitError, UsageError

    if options.rebuild and options.bundle is None:
        raise UsageError("--rebuild needs the bundle to build again; add --bundle, or leave --rebuild out")
    try:
        return opened()
    except MisfitError as misfit:
        if not options.rebuild:
            raise
        reason = misfit
    _rebuild(options, reason)
    return opened()


def _rebuild(options: argparse.Namespace, reason: Exception) -> None:
    from refusion_edge.bundle.folder import read_bundle
    from refusion_edge.cli.build import print_report
    from refusion_edge.cli.console import progress_bar, remarks
    from refusion_edge.cli.progress import BuildProgress
    from refusion_edge.export.build import rebuild

    remarks().print(f"rebuilding: {reason}")
    with progress_bar() as progress:
        shown = BuildProgress(progress)
        report = rebuild(read_bundle(options.bundle), shown.enter, shown)
    print_report(report)
