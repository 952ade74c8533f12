"""The command line: the verbs, and how errors and interrupts become exit codes.

Each verb is a module with ``SUMMARY``, ``add_arguments`` and ``run``. It translates options into calls and results into
text; other packages do the work, and ``run`` imports everything heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from refusion_edge._version import __version__
from refusion_edge.cli.options import require_distinct, require_free, written_files
from refusion_edge.errors import BackendError, InputError, MisfitError, OutputError, RefusionError, UsageError
from refusion_edge.text import printable, redact

VERBS = (
    "demo", "fuse", "stream", "snap", "align", "eval", "train", "export", "build", "verify", "inspect", "bench", "doctor",
    "selftest", "completion",
)  # fmt: skip

_HELP = "'refusion-edge help VERB' shows the options of a verb.\n\n"
EXIT_CODES = """\
exit codes:
  0    success
  1    a gate or check failed
  2    wrong usage
  3    back end, device or package missing
  4    bad input, or an output that cannot be written
  5    cameras lost
  130  interrupted
"""
_USAGE, _INTERRUPTED = 2, 130
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
# Long enough for the callback that swallowed the interrupt to return.
_AGAIN_S = 0.02
# An error stays one line, however long the text that it quotes from a file.
_MOST_SHOWN = 2000


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, and suggests the nearest verb or option for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {printable(message, _MOST_SHOWN)}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(_USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        # The inherited method ignores errors, so that help that cannot be printed would end with exit code 0.
        print(message, end="", file=file or sys.stderr)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"there is no '{redact(str(value))}'{_nearest(str(value), choices)}; choose from {', '.join(choices)}"
            )

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse, and reject unknown options immediately, so that the nearest one can be suggested."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            if not unknown[0].startswith("-"):
                self.error(f"unexpected argument '{redact(unknown[0])}' (quote patterns such as 'ir/*.png')")
            options = [option for action in self._actions for option in action.option_strings]
            name = unknown[0].partition("=")[0]  # the value may be a password
            self.error(f"unrecognized option '{name}'{_nearest(name, options)}")
        return parsed, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program name; those of the process if None.

    Returns:
        The exit code, see ``EXIT_CODES``.
    """
    if sys.stdout is None:
        # Stop now: the next file opened would get its descriptor, and with it everything that is printed.
        return _refuse("standard output is closed; redirect it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        # Names that are not valid UTF-8, or beyond the encoding of the terminal, are printed with escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = _run(argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        return _refuse_output(error)
    return code


def _run(argv: Sequence[str] | None) -> int:
    interruption = _Interruption()
    try:
        with interruption, _WarningLines():
            options = make_parser().parse_args(_without_help_verb(sys.argv[1:] if argv is None else argv))
            _require_folder()
            code = _run_verb(options)
            sys.stdout.flush()
            return code
    except SystemExit as stop:  # argparse ends --help and usage errors this way
        return stop.code if isinstance(stop.code, int) else _USAGE
    except BrokenPipeError:
        # Whatever reads our output has exited (`| head`).
        _discard(sys.stdout)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        # An interrupt during the import of a compiled module surfaces as an ImportError.
        if interruption.happened or isinstance(error, KeyboardInterrupt):
            _say("interrupted; no incomplete files were left behind")
            return _INTERRUPTED
        if not isinstance(error, RefusionError):
            # An error of standard output has no file name; problems with our own files are OutputErrors.
            if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
                return _refuse_output(error)
            if not _is_no_memory(error):
                raise
            error = BackendError("there is not enough memory", "use smaller images, fewer processes or another machine")
        _say(f"error: {printable(str(error), _MOST_SHOWN)}")
        return error.exit_code


class _WarningLines(logging.Handler):
    """Prints each warning of the package once, as one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def __enter__(self) -> None:
        logging.getLogger("refusion_edge").addHandler(self)

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("refusion_edge").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._printed:
            self._printed.add(text)
            _say(f"warning: {printable(text, _MOST_SHOWN)}")


def _run_verb(options: argparse.Namespace) -> int:
    """Run a verb; with ``--rebuild``, run it again after rebuilding a bundle that does not fit this machine."""
    rebuilds = getattr(options, "rebuild", False)
    if rebuilds and options.bundle is None and getattr(options, "config", None) is None:
        raise UsageError("--rebuild needs a bundle", "add --bundle, or leave --rebuild out")
    require_distinct(options)
    require_free(*written_files(options), overwrite=getattr(options, "overwrite", False))
    if getattr(options, "trust", False):
        _trust_bundles(options)
    try:
        code: int = options.run(options)
    except MisfitError as misfit:
        # An engine is opened before anything is written.
        if not rebuilds or options.bundle is None:
            raise
        from refusion_edge.cli.build import rebuild

        rebuild(options.bundle, misfit)
        code = options.run(options)
    return code


def _is_no_memory(error: BaseException) -> bool:
    # OpenCV, which may not be loaded, has one type for all of its errors.
    return isinstance(error, MemoryError) or (type(error).__module__ == "cv2" and "Insufficient memory" in str(error))


def _trust_bundles(options: argparse.Namespace) -> None:
    """Record that the user trusts the bundles that the options name."""
    from refusion_edge.bundle.manifest import MANIFEST
    from refusion_edge.bundle.trust import trust_path

    for option in ("bundle", "engines", "compare"):
        named = getattr(options, option, None) or ()
        for text in (named,) if isinstance(named, str) else named:
            # eval names its methods: NAME=BUNDLE.
            for path in dict.fromkeys((text, text.partition("=")[2])):
                if path and Path(path, MANIFEST).is_file():
                    trust_path(path)
                    break


def _require_folder() -> None:
    try:
        Path.cwd()
    except OSError:
        raise InputError("the current folder no longer exists", "change to another one") from None


def _say(text: str) -> None:
    """Print a line on standard error; if that is closed, full or no longer read, only the exit code tells."""
    if sys.stderr is not None:  # with file=None, print would use standard output
        try:
            print(f"refusion-edge: {text}", file=sys.stderr)
        except OSError:
            _discard(sys.stderr)


def _refuse(problem: str) -> int:
    _say(f"error: {problem}")
    return OutputError.exit_code


def _refuse_output(error: OSError) -> int:
    _discard(sys.stdout)
    return _refuse(f"cannot write to standard output: {error.strerror}; redirect it elsewhere")


def _discard(stream: TextIO) -> None:
    """Leave the interpreter nothing of standard output or error to flush at exit."""
    with contextlib.suppress(OSError, ValueError):  # a replacement for them has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave() -> NoReturn:
    """Run one command and exit with its code: the entry point of the program."""
    code = main()
    if code == _INTERRUPTED or any(thread.daemon for thread in threading.enumerate()):
        # While the interpreter shuts down, a worker thread that is still inside an engine's native code would abort the
        # process, and so change the exit code; so might a compiled module whose import was interrupted. Python itself ends
        # by SIGINT if the interrupt came while it compiled text, as for a data class.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _without_help_verb(argv: Sequence[str]) -> Sequence[str]:
    """Read ``help VERB`` as ``VERB --help``."""
    return [*argv[1:], "--help"] if argv and argv[0] == "help" else argv


class _Version(argparse.Action):
    """Prints the version, the usable back ends with their versions, and what the native kernels lack."""

    def __init__(self, option_strings: Sequence[str], dest: str, **other: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=other["help"])

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        from refusion_edge.backends.registry import BACKENDS, status

        found = {name: status(name) for name in BACKENDS}
        usable = ", ".join(f"{name} ({state.reason})" for name, state in found.items() if state.usable)
        print(f"refusion-edge {__version__}\nback ends: {usable or 'none; see refusion-edge doctor'}")
        # A part of the package that an installation without a compiler lacks, which pip does not show.
        if not found["native"].usable:
            print(f"without native: {found['native'].reason}; {found['native'].fix}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the program, with the parsers of all verbs."""
    parser = _Parser(
        prog="refusion-edge",
        description="Image fusion with the ReFusion network, from training to live cameras on edge devices.",
        epilog=_HELP + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show the version and the usable back ends, and exit")
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


class _Interruption:
    """Turns SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, so that files are closed or removed, and remembers it."""

    def __init__(self) -> None:
        self.happened = False
        self._previous: dict[int, Any] = {}
        self._number = signal.SIGINT
        self._report_unraisable = sys.unraisablehook

    def __enter__(self) -> None:
        sys.unraisablehook = self._unraisable
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A background job of a shell ignores SIGINT, one of nohup SIGHUP, and so do we. Only the main thread can set
            # handlers.
            if signal.getsignal(number) is not signal.SIG_IGN and threading.current_thread() is threading.main_thread():
                self._previous[number] = signal.signal(number, self._interrupt)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        sys.unraisablehook = self._report_unraisable

    def _interrupt(self, number: int, _frame: FrameType | None) -> NoReturn:
        self.happened, self._number = True, signal.Signals(number)
        raise KeyboardInterrupt

    def _unraisable(self, lost: Any) -> None:
        """Resend an interrupt that Python dropped because it arrived in a finalizer or in an import callback."""
        if lost.exc_type is KeyboardInterrupt:
            threading.Timer(_AGAIN_S, self._send_again).start()
        else:
            self._report_unraisable(lost)

    def _send_again(self) -> None:
        # Only while the command runs: afterwards nothing would handle it.
        if self._previous:
            os.kill(os.getpid(), self._number)
