"""``fuse``: two pictures, two folders or two patterns into fused pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_picture, add_task, add_threads, nonempty
from refusion_edge.cli.rebuild import add_rebuild, open_or_rebuild

if TYPE_CHECKING:
    from refusion_edge.fuser import Fuser
    from refusion_edge.images.pairs import PairPaths

SUMMARY = "fuse two images, or two folders of images matched by stem"

_FORMATS = ("png", "jpg", "tiff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuse``."""
    parser.epilog = (
        "source a is the infrared, functional, near-focused or under-exposed image; source b the visible, MRI, "
        "far-focused or over-exposed one. Quote patterns ('ir/*.png'), so that the shell does not expand them."
    )
    parser.add_argument("a", type=nonempty, help="source a: file, folder or quoted glob pattern")
    parser.add_argument("b", type=nonempty, help="source b: the same kind of thing")
    parser.add_argument(
        "-o", "--output", required=True, type=nonempty, help="file to write, or folder if the sources are folders"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--bundle", type=nonempty, metavar="DIR", help="engine bundle made by 'build' (default: the weights of the task, fp32)"
    )
    source.add_argument("--weights", type=nonempty, metavar="FILE", help="weights file: safetensors or official .pth")
    add_task(parser)
    parser.add_argument("--backend", default="auto", metavar="NAME", help="back end, see 'doctor' (default: auto)")
    add_rebuild(parser)
    add_picture(parser)
    parser.add_argument("--format", choices=_FORMATS, default="png", help="file format in an output folder (default: png)")
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    """Fuse and write; a bad pair in a folder is reported, the others are fused."""
    from refusion_edge.cli.console import output
    from refusion_edge.errors import InputError, UsageError
    from refusion_edge.fuser import load
    from refusion_edge.images.io import check_writable_suffix, write_image
    from refusion_edge.images.pairs import find_pairs, is_collection, read_pair

    many = is_collection(options.a)
    if not many:
        check_writable_suffix(Path(options.output))
    elif Path(options.output).is_file():
        raise UsageError(f"expected a folder for the results of a folder, got the file {options.output}; choose a folder.")
    found = find_pairs(options.a, options.b)
    _refuse_overwriting(found.pairs, [_target(options, paths, many) for paths in found.pairs])
    source = options.bundle or options.weights or options.task or "ir_vis"
    task = options.task if source != options.task else None

    def opened() -> Fuser:
        return load(source, task=task, backend=options.backend, output_range=options.output_range, threads=options.threads)

    if many:
        with open_or_rebuild(options, opened) as fuser:
            _say_choice(fuser)
            return _fuse_folder(options, fuser, found.pairs, (*found.only_a, *found.only_b))
    # Read first: a wrong path should not wait for an engine.
    pair = read_pair(found.pairs[0])
    with open_or_rebuild(options, opened) as fuser:
        try:
            fused = fuser.fuse(pair.a, pair.b, colour=not options.grey)
        except InputError as error:
            raise type(error)(f"{options.a} and {options.b}: {error}") from error
    write_image(options.output, fused)
    _say_choice(fuser)
    output().print(f"wrote {options.output} ({fused.shape[1]}x{fused.shape[0]}, {'colour' if fused.ndim == 3 else 'grey'})")
    return 0


def _say_choice(fuser: Fuser) -> None:
    """Say which back end auto chose and why; a bundle says for itself what it was built for."""
    from refusion_edge.cli.console import output

    if fuser.choice is not None and fuser.choice.automatic:
        output().print(f"Back end: {fuser.choice.reason}")


def _fuse_folder(options: argparse.Namespace, fuser: Fuser, pairs: tuple[PairPaths, ...], unmatched: tuple[Path, ...]) -> int:
    from refusion_edge.cli.console import output, progress_bar, remarks
    from refusion_edge.errors import InputError
    from refusion_edge.images.io import write_image
    from refusion_edge.images.pairs import read_pair

    failures: list[str] = []
    with progress_bar() as progress:
        for paths in progress.track(pairs, description="fusing"):
            try:
                pair = read_pair(paths)
                fused = fuser.fuse(pair.a, pair.b, colour=not options.grey)
            except InputError as error:
                failures.append(f"pair {paths.name}: {error}")
            else:
                write_image(_target(options, paths, many=True), fused)
    if unmatched:
        remarks().print(f"without a counterpart, left out: {', '.join(str(path) for path in unmatched)}")
    for failure in failures:
        remarks().print(f"refusion-edge: error: {failure}")
    output().print(f"wrote {len(pairs) - len(failures)} of {len(pairs)} fused images to {options.output}")
    return InputError.exit_code if failures else 0


def _target(options: argparse.Namespace, paths: PairPaths, many: bool) -> Path:
    return Path(options.output) / f"{paths.name}.{options.format}" if many else Path(options.output)


def _refuse_overwriting(pairs: tuple[PairPaths, ...], targets: list[Path]) -> None:
    from refusion_edge.errors import UsageError

    sources = {path.resolve() for paths in pairs for path in (paths.a, paths.b)}
    for target in targets:
        if target.resolve() in sources:
            raise UsageError(
                f"expected an output that is none of the sources, got {target}, which would be overwritten; "
                "choose another --output."
            )
