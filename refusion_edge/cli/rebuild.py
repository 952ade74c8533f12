"""``--rebuild``: an engine that does not fit this machine is built again in its place, and only where that is asked for."""

from __future__ import annotations

import argparse
import shlex


def add_rebuild(parser: argparse.ArgumentParser) -> None:
    """Add ``--rebuild``."""
    parser.add_argument(
        "--rebuild", action="store_true",
        help="where the engine of --bundle was built for another machine, GPU, driver or version, build it again in its place, "
        "with the options that it was built with (default: say so and end)",
    )  # fmt: skip


def rebuild_misfit(options: argparse.Namespace) -> None:
    """Build the bundle of a command again, if that was asked for and its engine does not fit this machine.

    Raises:
        UsageError: There is no bundle to build again.
        RefusionError: It cannot be opened for another reason, or not built here; the old bundle is as it was.
    """
    from refusion_edge.bundle.folder import read_bundle
    from refusion_edge.cli.console import remarks
    from refusion_edge.errors import MisfitError, UsageError
    from refusion_edge.fuser import open_bundle

    if not options.rebuild:
        return
    if options.bundle is None:
        raise UsageError("expected --bundle with --rebuild, got none; name the bundle, or leave --rebuild out.")
    bundle = read_bundle(options.bundle)
    try:
        with open_bundle(bundle, options.backend, judge=False):
            pass
    except MisfitError as misfit:
        remarks().print(f"rebuilding: {misfit}")
        _, _, *words = shlex.split(bundle.manifest.rebuild_command(bundle.path))
        _build([*words, "--output", str(bundle.path)])


def _build(words: list[str]) -> None:
    from refusion_edge.cli import build

    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    build.run(parser.parse_args(words))
