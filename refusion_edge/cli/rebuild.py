"""``--rebuild``: on request, rebuild a bundle in place if its engine does not fit this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def add_rebuild(parser: argparse.ArgumentParser) -> None:
    """Add ``--rebuild``."""
    parser.add_argument(
        "--rebuild", action="store_true",
        help="rebuild the bundle in place, with its own settings, if it was built for another machine, GPU, driver or version "
        "(default: stop with an error)",
    )  # fmt: skip


def open_or_rebuild(options: argparse.Namespace, opened: Callable[[], _T]) -> _T:
    """Open an engine; with ``--rebuild``, first rebuild its bundle if it does not fit this machine.

    Args:
        options: Options of the verb, including ``bundle`` and ``rebuild``.
        opened: Opens the engine.

    Raises:
        UsageError: ``--rebuild`` was given without a bundle.
        RefusionError: The engine cannot be opened for another reason, or cannot be built here; the bundle is unchanged.
    """
    from refusion_edge.errors import MisfitError, UsageError

    if options.rebuild and options.bundle is None:
        raise UsageError("--rebuild needs a bundle", "add --bundle, or leave --rebuild out")
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
