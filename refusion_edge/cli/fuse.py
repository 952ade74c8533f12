"""``fuse``: fuse two images, two folders or two patterns of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_image_output, add_network, add_rebuild, add_task, add_threads, nonempty

if TYPE_CHECKING:
    from refusion_edge.fuser import Fuser
    from refusion_edge.images.pairs import PairPaths

SUMMARY = "fuse two images, or two folders of images matched by stem"

_FORMATS = ("png", "jpg", "tiff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuse``."""
    parser.epilog = (
        "Source a is the infrared, functional, near-focused or underexposed image, source b the visible, MRI, far-focused "
        "or overexposed one. Quote patterns ('ir/*.png') so that the shell does not expand them."
    )
    parser.add_argument("a", type=nonempty, help="source a: file, folder or quoted glob pattern")
    parser.add_argument("b", type=nonempty, help="source b, of the same kind")
    parser.add_argument(
        "-o", "--output", required=True, type=nonempty, help="file to write, or a folder if the sources are folders or patterns"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--bundle", type=nonempty, metavar="DIR", help="engine bundle from 'build' (default: the weights of the task in fp32)"
    )
    source.add_argument("--weights", type=nonempty, metavar="FILE", help="weights file: safetensors or official .pth")
    add_task(parser)
    add_network(parser)
    parser.add_argument("--backend", default="auto", metavar="NAME", help="back end, see 'doctor' (default: auto)")
    add_rebuild(parser)
    add_image_output(parser)
    parser.add_argument(
        "--format", choices=_FORMATS, default="png", help="format of the files in an output folder (default: png)"
    )
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    """Fuse and write; a pair of a folder that cannot be fused is reported, and the others are still fused."""
    from refusion_edge.cli.console import output
    from refusion_edge.errors import InputError, UsageError
    from refusion_edge.fuser import load
    from refusion_edge.images.io import check_writable_suffix, write_image
    from refusion_edge.images.pairs import find_pairs, is_collection, read_pair

    many = is_collection(options.a)
    if not many:
        check_writable_suffix(Path(options.output))
    elif Path(options.output).is_file():
        raise UsageError(f"the sources are folders, but --output {options.output} is a file", "name a folder")
    found = find_pairs(options.a, options.b)
    _refuse_overwriting(found.pairs, [_target(options, paths, many) for paths in found.pairs])
    source = options.bundle or options.weights or options.task or "ir_vis"
    task = options.task if source != options.task else None

    def opened() -> Fuser:
        return load(
            source,
            task=task,
            backend=options.backend,
            output_range=options.output_range,
            threads=options.threads,
            network=options.network,
        )

    if many:
        with opened() as fuser:
            _say_choice(fuser)
            return _fuse_folder(options, fuser, found.pairs, (*found.only_a, *found.only_b))
    # Read the images first, so that a wrong path fails before an engine is loaded.
    pair = read_pair(found.pairs[0])
    with opened() as fuser:
        try:
            fused = fuser.fuse(pair.a, pair.b, color=not options.gray)
        except InputError as error:
            raise error.within(f"{options.a} and {options.b}") from error
    write_image(options.output, fused)
    _say_choice(fuser)
    output().print(f"wrote {options.output} ({fused.shape[1]}x{fused.shape[0]}, {'color' if fused.ndim == 3 else 'grayscale'})")
    return 0


def _say_choice(fuser: Fuser) -> None:
    """Print which back end auto chose and why; a bundle names its own."""
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
                fused = fuser.fuse(pair.a, pair.b, color=not options.gray)
            except InputError as error:
                failures.append(f"pair {paths.name}: {error}")
            else:
                write_image(_target(options, paths, many=True), fused)
    if unmatched:
        remarks().print(f"left out, no counterpart: {', '.join(str(path) for path in unmatched)}")
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
            raise UsageError(f"the result would overwrite the source {target}", "choose another --output")
