"""Options shared by several verbs, so that they read and behave the same everywhere."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.errors import OutputError, UsageError
from refusion_edge.files import is_occupied
from refusion_edge.machine import MAX_THREADS
from refusion_edge.network import NETWORK_NAMES
from refusion_edge.tasks import TASKS

_UNITS_PER_M = {"m": 1, "cm": 100, "mm": 1000}
if TYPE_CHECKING:
    from refusion_edge.archive.shards import Shard
    from refusion_edge.images.names import NameList

_AMOUNT = re.compile(r"(?P<number>\d{1,9}(\.\d{1,9})?) ?(?P<unit>[MGT])(?P<binary>i?)B", re.ASCII)
_LENGTH = re.compile(r"(?P<number>\d{1,9}(\.\d{1,9})?) ?(?P<unit>m|cm|mm)", re.ASCII)


def add_task(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Add ``--task``."""
    parser.add_argument(
        "--task", choices=TASKS, default=default,
        help="fusion task" + (f" (default: {default})" if default else ""),
    )  # fmt: skip


def add_network(
    parser: argparse.ArgumentParser, *others: str, also: str = "", default: str = "that of the weights, or refusion"
) -> None:
    """Add ``--network``.

    Args:
        parser: Where to add it.
        *others: What may be given instead of a name.
        also: What these mean, for the help; begins with a comma.
        default: What is done without it, for the help.
    """
    parser.add_argument(
        "--network",
        choices=(*NETWORK_NAMES, *others),
        help=f"network: refusion (from the paper) or fast{also} (default: {default})",
    )


def add_rebuild(parser: argparse.ArgumentParser) -> None:
    """Add ``--rebuild``; ``refusion_edge.cli`` rebuilds the bundle and runs the verb again."""
    parser.add_argument(
        "--rebuild", action="store_true",
        help="rebuild the bundle in place, with its own settings, if it was built for another machine, GPU, driver or version "
        "(default: stop with an error)",
    )  # fmt: skip


def add_best_effort(parser: argparse.ArgumentParser) -> None:
    """Add ``--best-effort`` for cameras."""
    parser.add_argument(
        "--best-effort",
        action="store_true",
        help="use the nearest mode of a camera if it does not grant the requested format, size or rate",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust`` for pipelines in a file and for compiled engines."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run GStreamer pipelines (gst:) named in a rig or configuration file, and trust the compiled engine of this "
        "bundle, now and in later runs, even if it was built on another machine; both can run any code",
    )


def add_trust_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust`` for compiled engines; ``refusion_edge.cli`` records the bundles that the options name."""
    parser.add_argument(
        "--trust", action="store_true",
        help="trust the compiled engine of this bundle, now and in later runs, even if it was built on another machine; an "
        "engine can run any code",
    )  # fmt: skip


def add_shard(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--shard``, with its help."""
    parser.add_argument("--shard", type=_shard, metavar="I/N", help=what)


def _shard(text: str) -> Shard:
    from refusion_edge.archive.shards import parse_shard

    return parse_shard(text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", metavar="FILE", help="also write the result as JSON; - writes it to standard output")


def add_overwrite(parser: argparse.ArgumentParser, *written: str, what: str = "existing files") -> None:
    """Add ``--overwrite``, which every verb that writes files has.

    Args:
        parser: Where to add it.
        *written: Options that each name a file to write; ``refusion_edge.cli`` asks ``require_free`` about them before it
            runs the verb. The verb itself asks about all other files.
        what: What it replaces, for the help.
    """
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what} (default: stop with an error)")
    parser.set_defaults(written=written)


def written_files(options: argparse.Namespace) -> list[Path]:
    """The files that the options name for writing, see ``add_overwrite``."""
    if getattr(options, "shard", None) is not None or getattr(options, "cluster", None) is not None:
        return []  # a repeated shard continues what it wrote before
    named = (getattr(options, name) for name in getattr(options, "written", ()))
    return [Path(path) for path in named if path is not None and path != "-"]


def require_distinct(options: argparse.Namespace) -> None:
    """Require that the options name no file twice for writing, see ``add_overwrite``; devices may be.

    Raises:
        UsageError: The later one would replace the earlier one.
    """
    taken: dict[str, str] = {}
    for name in dict.fromkeys((*getattr(options, "written", ()), "output")):
        path = str(getattr(options, name, None) or "-")
        if path == "-" or path.startswith("/dev/"):
            continue
        other = taken.setdefault(os.path.realpath(path), name)
        if other != name:
            raise UsageError(f"--{other} and --{name} both name {path}", "choose different names")


def require_free(*paths: Path, overwrite: bool, instead: str = "choose another name") -> None:
    """Require that no output file exists yet: the existing one may have cost the user work.

    Args:
        *paths: Files to be written.
        overwrite: Whether the user allows them to be replaced.
        instead: What to do instead of replacing it, in the imperative.

    Raises:
        OutputError: One exists.
    """
    existing = None if overwrite else next(filter(is_occupied, paths), None)
    if existing is not None:
        raise OutputError(f"{existing} exists", f"{instead}, or replace it with --overwrite")


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Add ``--layout``, for ``resolve_layout``."""
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="layout of a known data set, such as msrs, lytro or mefb, if its folder is given as both sources "
        "(default: detected)",
    )


def add_split(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--split``, for ``read_split``.

    Args:
        parser: Where to add it.
        what: What is done with the pairs that it lists, for the help.
    """
    parser.add_argument(
        "--split", type=nonempty, metavar="FILE",
        help=f"{what} only the pairs that this text file names, one per line, as data sets publish their splits (default: all)",
    )  # fmt: skip


def read_split(options: argparse.Namespace) -> NameList | None:
    """Read the file of ``--split``.

    Raises:
        InputError: It cannot be used.
    """
    from refusion_edge.images.names import read_names

    return None if options.split is None else read_names(Path(options.split))


def resolve_layout(a: str, b: str, task: str | None, layout: str | None) -> tuple[str, str]:
    """Find the sources of a data set whose folder is given as both sources or with a layout, and print them.

    Raises:
        UsageError: There is no such layout, or it is for another task; or two folders were given with a layout.
        InputError: The folder lacks the sources.
    """
    same = Path(a) == Path(b)
    if layout is None and not (same and Path(a).is_dir()):
        return a, b
    if not same:
        raise UsageError(
            f"a layout finds both sources in one folder, and {a} and {b} are two",
            "give one folder twice, or leave --layout out",
        )
    from refusion_edge.cli.console import remarks
    from refusion_edge.images.layouts import find_folders
    from refusion_edge.tasks import find_task

    folders = find_folders(Path(a), find_task(task or "ir_vis"), layout)
    remarks().print(f"layout {folders.layout or 'of the task'}: {folders.a} and {folders.b}")
    return str(folders.a), str(folders.b)


class _Renamed(argparse.Action):
    """Passes the old spelling of an option on to the new one, with a warning."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, new: argparse.Action, **other: Any) -> None:
        kind: Any = new.type  # typeshed's attribute may be a string, its parameter may not
        super().__init__(option_strings, new.dest, nargs=new.nargs, type=kind, choices=new.choices, **other)
        self.new = new

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Warn, then apply the new option."""
        new = self.new.option_strings[-1]
        print(
            f"refusion-edge: warning: {option_string} is now called {new}; the next release drops the old name",
            file=sys.stderr,
        )
        self.new(parser, namespace, values, new)


def add_renamed(parser: argparse._ActionsContainer, old: str, new: str) -> None:
    """Keep the old spelling of an option for one more release, undocumented and with a warning."""
    action = next(action for action in parser._actions if new in action.option_strings)
    parser.add_argument(old, action=_Renamed, new=action, dest=action.dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_image_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--range`` and ``--gray``, which finish a single image."""
    parser.add_argument(
        "--range", dest="output_range", choices=("stretch", "fixed"), default="stretch",
        help="output range: stretch scales each image from its darkest to its brightest value, as the official script does, "
        "but raises contrast four times at most; fixed is the same for all images (default: stretch)",
    )  # fmt: skip
    parser.add_argument("--gray", action="store_true", help="write the fused luma only, without the color of the sources")
    add_renamed(parser, "--grey", "--gray")


def add_threads(parser: argparse.ArgumentParser, whose: str = "the back end") -> None:
    """Add ``--threads``, the number of threads of a library, named for the help."""
    parser.add_argument(
        "--threads", type=thread_count, default=0, metavar="N", help=f"CPU threads of {whose} (default: chosen by {whose})"
    )


def thread_count(text: str) -> int:
    """Read a number of threads or processes.

    Raises:
        ArgumentTypeError: The text is not a whole number from 1 to 256; thousands of threads would stall the machine.
    """
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_THREADS):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {MAX_THREADS}")
    return int(text)


def length_m(text: str) -> float:
    """Read a length with its unit, such as ``5m`` or ``30mm``, in meters; ``far`` is infinite.

    Raises:
        ArgumentTypeError: The unit is missing, or the number is not above 0.
    """
    if text == "far":
        return math.inf
    match = _LENGTH.fullmatch(text)
    if match is None or not float(match["number"]) > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a length above 0 with its unit; write 5m, 80cm, 30mm or far")
    return float(match["number"]) / _UNITS_PER_M[match["unit"]]


def size_bytes(text: str) -> int:
    """Read an amount of data with a unit, such as ``10GB`` (powers of 1000) or ``10GiB`` (powers of 1024), in bytes.

    Raises:
        ArgumentTypeError: The unit is missing, or the amount is not above 0.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None or not float(match["number"]) > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive amount with a unit; write 500MB, 10GB or 2TiB")
    base = 1024 if match["binary"] else 1000
    return int(float(match["number"]) * base ** ("MGT".index(match["unit"]) + 2))


def nonempty(text: str) -> str:
    """Read a name, and reject the empty one that an unset shell variable leaves.

    Raises:
        ArgumentTypeError: The name is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def pixel_range(text: str) -> tuple[float, float] | str:
    """Read a range of pixel values, ``LOW:HIGH``, ``auto`` or ``full``.

    Raises:
        ArgumentTypeError: The text is none of these, or the range is empty.
    """
    if text in ("auto", "full"):
        return text
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise argparse.ArgumentTypeError(f"'{text}' is not a range; write LOW:HIGH with LOW below HIGH, auto or full")
    return low, high


def require_both(first: object, second: object, names: str) -> None:
    """Require two options that belong together to be both present or both absent.

    Raises:
        UsageError: Only one is present.
    """
    if (first is None) != (second is None):
        raise UsageError(f"{names} belong together, and only one was given", "add the other, or leave both out")


def number_between(text: str, least: float, most: float) -> float:
    """Read a number from ``least`` to ``most``.

    Raises:
        ArgumentTypeError: The text is not a number, or the number lies outside.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from {least:g} to {most:g}")
    return value
