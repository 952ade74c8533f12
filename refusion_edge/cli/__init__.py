"""The command line: which verb runs what, and how errors end.

Every verb is a module with ``SUMMARY``, ``add_arguments`` and ``run``. It translates options into calls and results
into text; the work is done elsewhere, and everything heavy is imported inside ``run``.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from refusion_edge import __version__
from refusion_edge.errors import RefusionError

VERBS = ("demo", "fuse", "export", "build", "verify", "inspect", "doctor")

EXIT_CODES = """\
exit codes:
  0    good
  1    a gate or check failed
  2    usage
  3    back end, device or package missing
  4    bad input, or an output that cannot be written
  130  interrupted
"""
_USAGE, _INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one sentence, and names the nearest verb or option where one was mistyped."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}; see '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(_USAGE)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"expected one of {', '.join(choices)}, got '{value}'{_nearest(str(value), choices)}"
            )

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse, refusing options that are unknown at once, so that the nearest one can be suggested."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            self.error(f"unrecognised argument '{unknown[0]}'{_nearest(unknown[0].partition('=')[0], options)}")
        return parsed, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after the program's name; the process's own if None.

    Returns:
        Exit code, see ``EXIT_CODES``.
    """
    try:
        with _termination_as_interrupt():
            options = _parser().parse_args(argv)
            code: int = options.run(options)
            sys.stdout.flush()
            return code
    except SystemExit as stop:  # argparse ends --help and usage errors this way
        return stop.code if isinstance(stop.code, int) else _USAGE
    except RefusionError as error:
        print(f"refusion-edge: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("refusion-edge: interrupted; nothing half-written was left behind.", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); leave nothing for the interpreter to flush into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="refusion-edge",
        description="Image fusion with the ReFusion network, from training to live cameras on edge devices.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"refusion-edge {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name in VERBS:
        module = importlib.import_module(f"refusion_edge.cli.{name}")
        verb = verbs.add_parser(name, help=module.SUMMARY, description=module.SUMMARY, allow_abbrev=False)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def _nearest(word: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that temporary files are removed."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, where no signal arrives anyway
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
