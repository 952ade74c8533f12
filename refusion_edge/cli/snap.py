"""``snap``: take one pair of images from two cameras, as ``align`` needs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from refusion_edge.cli.options import add_best_effort, add_json, add_overwrite, nonempty, number_between, require_free

SUMMARY = "take one pair of images from two cameras at the same moment, for align"
_SCHEMA = "refusion-edge/snap/1"
# PNG holds no float and no negative numbers.
_PNG, _TIFF = ".png", ".tiff"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``snap``."""
    parser.description = (
        "take one pair of images from two cameras or videos at the same moment, and write ir.png and vis.png with every bit "
        "that the sources deliver (.tiff for float or negative values); the sources are those of 'stream'"
    )
    parser.add_argument("--ir", type=nonempty, required=True, metavar="URI", help="infrared source")
    parser.add_argument("--vis", type=nonempty, required=True, metavar="URI", help="visible source")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--offset-ms", type=_signed_milliseconds, default=0.0, metavar="MS",
        help="offset added to infrared time stamps (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--settle-s", type=_seconds, default=1.0, metavar="S",
        help="time for the cameras to adjust their exposure (default: 1)",
    )  # fmt: skip
    parser.add_argument("--timeout-s", type=_seconds, default=20.0, metavar="S", help="when to give up (default: 20)")
    add_best_effort(parser)
    add_json(parser)
    add_overwrite(parser, "json")


def run(options: argparse.Namespace) -> int:
    """Take the pair, write it, and print what was written."""
    from refusion_edge.cli.console import print_facts, remarks, write_json
    from refusion_edge.files import output_error
    from refusion_edge.images.io import write_image
    from refusion_edge.stream.frames import MS, SIDES
    from refusion_edge.stream.run.snapshot import take_pair

    names = {options.output / f"{side}{kind}" for side in SIDES for kind in (_PNG, _TIFF)}
    require_free(*sorted(names), overwrite=options.overwrite)
    say, said = remarks(), list[str]()

    def remark(text: str) -> None:
        said.append(text)
        say.print(text)

    pair = take_pair(
        options.ir, options.vis, offset_ms=options.offset_ms, settle_s=options.settle_s, timeout_s=options.timeout_s,
        best_effort=options.best_effort, remark=remark,
    )  # fmt: skip
    images = pair.images()
    deep = {side: image.dtype not in ("uint8", "uint16") for side, image in images.items()}
    paths = {side: options.output / f"{side}{_TIFF if deep[side] else _PNG}" for side in SIDES}
    written = []
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for side in SIDES:
            write_image(paths[side], images[side])
            written.append(paths[side])
        for path in names.difference(written):
            if path.is_file():  # of an earlier pair, which this one replaces
                path.unlink()
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise output_error(options.output, error) from error
        raise
    skew_ms = (pair.skew_ns or 0) / MS
    if options.json:
        facts: dict[str, object] = {
            side: {"file": str(paths[side]), "size_wh": list(images[side].shape[1::-1]), "dtype": str(images[side].dtype)}
            for side in SIDES
        }
        write_json(options.json, {"schema": _SCHEMA, **facts, "skew_ms": skew_ms, "remarks": said})
    if options.json != "-":
        described: dict[str, object] = {
            side: f"{images[side].shape[0]}x{images[side].shape[1]}, {images[side].dtype}, {paths[side]}" for side in SIDES
        }
        print_facts({**described, "Skew": f"{skew_ms:+.1f} ms, visible after infrared"})
        print(f"next: refusion-edge align auto --ir {paths['ir']} --vis {paths['vis']} -o rig.yaml")
    return 0


def _signed_milliseconds(text: str) -> float:
    return number_between(text, -1e6, 1e6)


def _seconds(text: str) -> float:
    return number_between(text, 0, 3600)
