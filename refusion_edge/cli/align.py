"""``align``: create and check the file of a camera rig."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.cli import align_time
from refusion_edge.cli.options import add_best_effort, add_json, add_overwrite, length_m, nonempty, require_free

if TYPE_CHECKING:
    from refusion_edge.arrays import Array
    from refusion_edge.calibration.rig.coarse import SearchRange
    from refusion_edge.calibration.rig.scene import SceneAlignment
    from refusion_edge.rig.model import ParallaxModel, Rig, RigAlignment, RigSource, SourceName

# Data sheets round fields of view, and lenses and video modes differ from them by some percent.
_FOV_TOLERANCE = 1.12

SUMMARY = "align an infrared and a visible camera, or check their alignment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the methods of ``align`` and their options."""
    ways = parser.add_subparsers(dest="way", metavar="METHOD", required=True)
    for name, summary in (
        ("auto", "from edges that both cameras see in the scene; fails without sufficient evidence"),
        ("points", "from points picked by hand in both images"),
        ("checkerboard", "from a checkerboard that both cameras see, in one or more pairs of images at one distance"),
        ("calibration", "from an OpenCV stereo calibration, for any distance"),
    ):
        way = ways.add_parser(name, help=summary, description=f"align {summary}", allow_abbrev=False)
        if name == "points":
            way.add_argument("points", type=Path, metavar="CSV", help="columns ir_x, ir_y, vis_x, vis_y in pixels of the views")
        if name == "calibration":
            _add_calibration(way)
        _add_images(way, required=name != "calibration")
        if name == "checkerboard":
            way.add_argument("--board", type=_board, required=True, metavar="9x6", help="inner corners across and down")
            way.add_argument(
                "--turn", type=int, choices=(0, 90, 180, 270),
                help="clockwise rotation of the infrared image relative to the visible one, in degrees (default: detected "
                "from the surroundings of the board, otherwise 0)",
            )  # fmt: skip
        if name in ("auto", "points", "checkerboard"):
            _add_model(way, auto=name == "auto")
        if name == "auto":
            _add_search(way)
            add_best_effort(way)
        _add_making(way, several_distances=name == "calibration")
    timing = ways.add_parser("time", help=align_time.SUMMARY, allow_abbrev=False)
    align_time.add_arguments(timing)
    check = ways.add_parser("check", help="measure the misalignment of a rig on a later pair of images", allow_abbrev=False)
    check.description = (
        "measure the misalignment of a rig on a later pair of images; exit code 1 if it is too large or cannot be determined"
    )
    check.add_argument("rig", type=Path, metavar="RIG", help="rig file")
    _add_images(check, required=True)
    add_best_effort(check)
    check.add_argument(
        "--distance", type=length_m, metavar="5m", help="working distance of the pair (default: the farthest one of the rig)"
    )
    check.add_argument(
        "--max-error", type=_positive, default=3.0, metavar="PX", help="largest misalignment that passes (default: 3)"
    )
    check.add_argument("--overlay", type=Path, metavar="PNG", help="also draw both views on top of each other")
    add_json(check)
    add_overwrite(check, "json", "overlay")


def run(options: argparse.Namespace) -> int:
    """Align or check, then print and write the result."""
    if options.way == "time":
        return align_time.run(options)
    return _check(options) if options.way == "check" else _make(options)


def _make(options: argparse.Namespace) -> int:
    from refusion_edge.calibration.rig.alignment import draw, summary, to_document
    from refusion_edge.cli.console import write_json
    from refusion_edge.images.io import write_image
    from refusion_edge.rig.file import read_rig, write_rig

    old = read_rig(options.rig) if options.rig else None
    adds = options.rig is not None and os.path.realpath(options.rig) == os.path.realpath(options.output)
    require_free(
        options.output, overwrite=options.overwrite or adds, instead=f"add this distance to it with --rig {options.output}"
    )
    _check_contradictions(options, old)
    frames = _read_frames(options)
    rig, alignments, scene = (
        _calibrated(options, old, frames) if options.way == "calibration" else _aligned(options, old, frames)
    )
    image = draw(rig, frames[0], alignments[-1].distance_m, summary(alignments[-1])) if options.overlay else None
    write_rig(options.output, rig)
    if image is not None:
        write_image(options.overlay, image)
    if options.json:
        write_json(options.json, to_document(rig, alignments[-1], scene))
    if options.json != "-":
        _print(options, rig, alignments, scene)
    return 0


def _check_contradictions(options: argparse.Namespace, old: Rig | None) -> None:
    from refusion_edge.errors import UsageError
    from refusion_edge.images.io import check_writable_suffix

    kept = [name for name in ("onto", "ir_crop", "vis_crop") if old is not None and getattr(options, name, None) is not None]
    if kept:
        option = f"--{kept[0].replace('_', '-')}"
        raise UsageError(f"{option} would change the views of the rig given by --rig", "leave one of the two out")
    if options.way == "auto" and options.scale_range and (options.ir_fov or options.vis_fov):
        raise UsageError("--scale-range and the fields of view both state the scale", "leave one of the two out")
    if options.fov is None and options.way == "auto":
        options.fov = getattr(options, f"{old.base if old else options.onto or 'vis'}_fov")
    has_lens = options.way == "calibration" or (old is not None and old.source(old.base).lens is not None)
    if options.baseline is not None and options.fov is None and not has_lens:
        raise UsageError("--baseline needs the field of view", "add --fov DEGREES of the base camera")
    if options.overlay:
        check_writable_suffix(options.overlay)
        if not options.ir:
            raise UsageError("--overlay needs images to draw", "add --ir and --vis")


def _aligned(
    options: argparse.Namespace, old: Rig | None, frames: list[dict[SourceName, Array]]
) -> tuple[Rig, list[RigAlignment], SceneAlignment | None]:
    from refusion_edge.calibration.rig.alignment import align_point_pairs, align_views, make_views
    from refusion_edge.calibration.rig.board import find_board
    from refusion_edge.calibration.rig.points import check_columns, check_points, read_points
    from refusion_edge.calibration.rig.structure import to_scene
    from refusion_edge.cli.console import remarks
    from refusion_edge.rig.model import SOURCE_NAMES

    sources = _sources(options, old, frames[0])
    base = old.base if old else options.onto or "vis"
    views = [make_views(sources, each, base) for each in frames]
    scene = None
    if options.way == "auto":
        within = _search_range(options, sources, base)
        alignment, scene = align_views(views[0], options.distance, model=options.model, within=within)
    else:
        if options.way == "points":
            points, kind = read_points(options.points), "points"
            sizes = {name: sources[name].view_xywh[2:] for name in SOURCE_NAMES}
            check_points(points, sizes, {name: sources[name].size_wh for name in SOURCE_NAMES})
            ir, vis = to_scene(views[0].ir, sensor=True), to_scene(views[0].vis, sensor=False)
            check_columns(points, ir, vis, options.model)
        else:
            board = find_board([(each.ir, each.vis) for each in views], options.board, options.turn)
            points, kind = board.points, f"corners (infrared turned by {board.turn_deg} degrees, {board.known})"
            if board.known == "assumed":
                remarks().print(
                    "assumed that neither camera is upside down against the other, as the board looks the same either way; if "
                    "one is, add --turn 180"
                )
            elif board.turn_deg and board.known == "seen":
                remarks().print(f"the infrared image is turned by {board.turn_deg} degrees clockwise, as the scene shows")
        alignment = align_point_pairs(points, base, views[0].base_size_wh, options.distance, model=options.model, kind=kind)
    return _finish(options, old, sources, [alignment], None), [alignment], scene


def _search_range(options: argparse.Namespace, sources: dict[SourceName, RigSource], base: SourceName) -> SearchRange:
    """The range of ``align auto``: fields of view of the moving view over that of the base."""
    from refusion_edge.calibration.rig.alignment import field_of_view_focal_px
    from refusion_edge.calibration.rig.coarse import SearchRange
    from refusion_edge.cli.options import require_both
    from refusion_edge.rig.model import SOURCE_NAMES

    require_both(options.ir_fov, options.vis_fov, "--ir-fov and --vis-fov")
    low, high = options.scale_range or SearchRange().field
    if options.ir_fov is not None:
        # Of the views, which may be parts of the frames that the data sheets speak of.
        shown = [
            sources[name].view_xywh[2] / field_of_view_focal_px(sources[name].size_wh[0], getattr(options, f"{name}_fov"))
            for name in SOURCE_NAMES
        ]
        field = shown[0] / shown[1]
        low, high = field / _FOV_TOLERANCE, field * _FOV_TOLERANCE
    return SearchRange(options.max_shift, options.max_rotation, (low, high) if base == "vis" else (1 / high, 1 / low))


def _calibrated(
    options: argparse.Namespace, old: Rig | None, frames: list[dict[SourceName, Array]]
) -> tuple[Rig, list[RigAlignment], SceneAlignment | None]:
    from refusion_edge.calibration.rig.stereo import align_calibration, read_calibration
    from refusion_edge.errors import UsageError

    if old:
        raise UsageError("a stereo calibration covers all distances and creates a new rig", "leave --rig out")
    sizes = {
        name: (frames[0][name].shape[1], frames[0][name].shape[0]) if frames else getattr(options, f"{name}_size")
        for name in ("ir", "vis")
    }
    if None in sizes.values():
        raise UsageError("the frame sizes of the two cameras are unknown", "add --ir-size and --vis-size, or images")
    calibration = read_calibration(options.files, model=options.lens, unit_m=options.unit)
    first, second = ("ir", "vis") if options.first == "ir" else ("vis", "ir")
    sources, alignments, parallax = align_calibration(
        calibration, (sizes[first], sizes[second]), options.distance, first=options.first, base=options.onto or "vis"
    )
    return _finish(options, None, sources, list(alignments), parallax), list(alignments), None


def _finish(
    options: argparse.Namespace,
    old: Rig | None,
    sources: dict[SourceName, RigSource],
    alignments: list[RigAlignment],
    parallax: ParallaxModel | None,
) -> Rig:
    """The rig with its new alignments and the properties given as options."""
    from dataclasses import replace

    from refusion_edge.calibration.rig.alignment import field_of_view_focal_px
    from refusion_edge.rig.model import ParallaxModel, Rig

    named = {name: replace(source, uri=getattr(options, f"{name}_uri") or source.uri) for name, source in sources.items()}
    if old is None:
        rig = Rig(named["ir"], named["vis"], tuple(alignments), base=options.onto or "vis", parallax=parallax)
    else:
        rig = replace(old.with_alignment(alignments[0]), ir=named["ir"], vis=named["vis"])
    said: dict[str, Any] = {name: getattr(options, name) for name in ("polarity", "gain", "time_offset_ms")}
    if options.time_offset_ms is not None:
        rig = replace(rig, time_error_ms=None)
    if options.baseline is not None:
        lens = rig.source(rig.base).lens
        focal = lens.focal_px[0] if lens else field_of_view_focal_px(rig.source(rig.base).size_wh[0], options.fov)
        said["parallax"] = ParallaxModel(focal, options.baseline)
    return replace(rig, **{name: value for name, value in said.items() if value is not None})


def _sources(options: argparse.Namespace, old: Rig | None, frames: dict[SourceName, Array]) -> dict[SourceName, RigSource]:
    from refusion_edge.rig.model import SOURCE_NAMES, RigSource

    if old:
        return {"ir": old.ir, "vis": old.vis}
    return {
        name: RigSource((frames[name].shape[1], frames[name].shape[0]), crop_xywh=getattr(options, f"{name}_crop"))
        for name in SOURCE_NAMES
    }


def _read_frames(options: argparse.Namespace) -> list[dict[SourceName, Array]]:
    from refusion_edge.cli.options import require_both
    from refusion_edge.errors import InputError, UsageError
    from refusion_edge.images.pairs import find_pairs, read_pair
    from refusion_edge.stream.uri import is_source

    require_both(options.ir, options.vis, "--ir and --vis")
    if not options.ir:
        return []
    if is_source(options.ir) or is_source(options.vis):
        return [_snapped(options)]
    pairs = find_pairs(options.ir, options.vis).pairs
    if len(pairs) > 1 and options.way != "checkerboard":
        raise UsageError(
            f"exactly one image of each camera is needed here, not {len(pairs)} pairs",
            "name two files",
            expected=1,
            got=len(pairs),
        )
    frames: list[dict[SourceName, Array]] = []
    for paths in pairs:
        pair = read_pair(paths)
        frames.append({"ir": pair.a, "vis": pair.b})
    sizes = {(frame["ir"].shape[:2], frame["vis"].shape[:2]) for frame in frames}
    if len(sizes) > 1:
        raise InputError("the images of one camera have different sizes", "sort them into folders by size")
    return frames


def _snapped(options: argparse.Namespace) -> dict[SourceName, Array]:
    """A pair of frames from two cameras, which the rig then names as its sources."""
    from refusion_edge.cli.console import remarks
    from refusion_edge.errors import UsageError
    from refusion_edge.stream.run.snapshot import take_pair

    if options.way not in ("auto", "check"):
        raise UsageError(f"align {options.way} needs images", "take them with 'refusion-edge snap'")
    pair = take_pair(
        options.ir, options.vis, offset_ms=getattr(options, "time_offset_ms", None) or 0.0,
        best_effort=options.best_effort, remark=remarks().print,
    )  # fmt: skip
    if options.way == "auto":
        options.ir_uri, options.vis_uri = options.ir_uri or options.ir, options.vis_uri or options.vis
    return dict(pair.images())


def _check(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from refusion_edge.calibration.rig.alignment import SCHEMA, check_rig, draw
    from refusion_edge.cli.console import print_facts, write_json
    from refusion_edge.images.io import check_writable_suffix, write_image
    from refusion_edge.rig.file import read_rig
    from refusion_edge.rig.model import distance_text

    if options.overlay:
        check_writable_suffix(options.overlay)
    rig, frames = read_rig(options.rig), _read_frames(options)[0]
    if options.overlay:
        # Before the check, which may fail: the overlay shows why.
        write_image(options.overlay, draw(rig, frames, options.distance, "as aligned by the rig"))
    result = check_rig(rig, frames, options.distance)
    passed = result.offset_px <= options.max_error
    if options.json:
        facts = {"offset_px": result.offset_px, "stated_px": result.stated_px, "max_error_px": options.max_error}
        write_json(options.json, {"schema": SCHEMA, "passed": passed, **facts, "evidence": asdict(result.scene.evidence)})
    if options.json != "-":
        stated = "not measured" if result.stated_px is None else f"{result.stated_px:.2f} px"
        print_facts(
            {
                "Rig": f"{options.rig} ({distance_text(options.distance or rig.alignments[-1].distance_m)})",
                "Offset": f"{result.offset_px:.2f} px RMS over the {rig.base} view, known to about "
                f"{result.scene.evidence.error_px:.2f} px",
                "Stated error": stated,
            }
        )
        outcome = "PASSED" if passed else "FAILED"
        print(f"{outcome}: at most {options.max_error:g} px allowed" + ("" if passed else "; run refusion-edge align again"))
    return 0 if passed else 1


def _print(options: argparse.Namespace, rig: Rig, alignments: list[RigAlignment], scene: SceneAlignment | None) -> None:
    from refusion_edge.calibration.rig.alignment import parallax_table, summary
    from refusion_edge.cli.console import output, plain_table, print_facts
    from refusion_edge.rig.model import distance_text

    facts: dict[str, object] = {}
    for alignment in alignments:
        facts["Alignment" if len(alignments) == 1 else f"Alignment {distance_text(alignment.distance_m)}"] = summary(alignment)
    facts["Measured"] = alignments[-1].error_method
    if scene is not None:
        facts["Overlap"] = f"{100 * scene.evidence.overlap:.0f} % of the view that shows less of the scene"
        facts["Field of view"] = (
            f"infrared {scene.field if rig.moving == 'ir' else 1 / scene.field:.2f} times as wide as visible"
        )
    print_facts(facts)
    console = output()
    distance_m = alignments[-1].distance_m
    if rig.parallax is not None and distance_m is not None:
        table = plain_table("distance", f"parallax error (px), aligned for {distance_text(distance_m)}")
        for at_m, error_px in parallax_table(rig.parallax, distance_m):
            table.add_row(distance_text(at_m), f"{error_px:.1f}")
        console.print(table)
    else:
        console.print("parallax: unknown; add --distance, --baseline and --fov to see the error at other distances")
    console.print(f"wrote {options.output}" + (f" and {options.overlay}" if options.overlay else ""))
    console.print(f"next: refusion-edge align check {options.output} --ir IR.png --vis VIS.png")


def _add_images(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--ir", type=nonempty, required=required, metavar="FILE", help="image from the infrared camera, or its URI"
    )
    parser.add_argument(
        "--vis", type=nonempty, required=required, metavar="FILE", help="image from the visible camera, or its URI"
    )


def _add_model(parser: argparse.ArgumentParser, *, auto: bool) -> None:
    default = "a similarity, or a homography if the scene requires it" if auto else "homography"
    parser.add_argument(
        "--model", choices=("similarity", "affine", "homography"), default=None if auto else "homography",
        help=f"geometric model of the warp (default: {default})",
    )  # fmt: skip


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-shift",
        type=_fraction,
        default=0.2,
        metavar="FRACTION",
        help="how far the narrower view may reach beyond the wider one, as a fraction of the wider one's width and height "
        "(default: 0.2)",
    )
    parser.add_argument(
        "--max-rotation", type=_angle, default=5.0, metavar="DEGREES", help="largest rotation in either direction (default: 5)"
    )
    parser.add_argument(
        "--scale-range", type=_scale_range, metavar="LOW,HIGH",
        help="range of the infrared view's width relative to the visible view's; 0.5 means half as wide "
        "(default: 0.4,2.5)",
    )  # fmt: skip
    for name, camera in (("ir", "infrared"), ("vis", "visible")):
        parser.add_argument(
            f"--{name}-fov", type=_angle, metavar="DEGREES",
            help=f"horizontal field of view of the {camera} camera; if both are given, only scales near their ratio are tried",
        )  # fmt: skip


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="cv2.FileStorage file (YAML, XML or JSON) with M1, D1, M2, D2, R and T",
    )
    parser.add_argument("--first", choices=("ir", "vis"), default="ir", help="camera 1 of the calibration (default: ir)")
    parser.add_argument("--unit", type=_unit, default=1.0, metavar="mm", help="unit of T: m, cm or mm (default: m)")
    parser.add_argument("--lens", choices=("pinhole", "fisheye"), default="pinhole", help="lens model (default: pinhole)")
    for name in ("ir", "vis"):
        parser.add_argument(
            f"--{name}-size", type=_size, metavar="HxW", help=f"height x width of {name} frames (default: that of the image)"
        )


def _add_making(parser: argparse.ArgumentParser, *, several_distances: bool) -> None:
    if several_distances:
        parser.add_argument(
            "--distance", type=_distances, default=[math.inf], metavar="2m,5m,far", help="working distances (default: far)"
        )
    else:
        parser.add_argument("--distance", type=length_m, metavar="5m", help="distance at which the alignment holds, or far")
        for name in ("ir", "vis"):
            parser.add_argument(
                f"--{name}-crop",
                type=_crop,
                metavar="X,Y,W,H",
                help=f"part of the {name} frames to use (default: all)",
            )
    parser.add_argument("--onto", choices=("vis", "ir"), help="camera whose view the fused image takes (default: vis)")
    parser.add_argument(
        "--baseline", type=length_m, metavar="30mm", help="distance between the cameras, for the parallax table"
    )
    parser.add_argument(
        "--fov", type=_angle, metavar="DEGREES", help="horizontal field of view of the --onto camera, for the parallax table"
    )
    for name in ("ir", "vis"):
        parser.add_argument(f"--{name}-uri", type=nonempty, metavar="URI", help=f"URI of the {name} frames, stored in the rig")
    parser.add_argument(
        "--polarity", choices=("white", "black", "auto"), help="shade of hot objects in the infrared image (default: white)"
    )
    parser.add_argument(
        "--gain", choices=("linear", "percentile", "plateau", "clahe"), help="infrared gain mode (default: percentile)"
    )
    parser.add_argument(
        "--time-offset-ms", type=_number, metavar="MS", help="offset added to infrared time stamps to match the visible ones"
    )
    parser.add_argument(
        "--rig", type=Path, metavar="RIG", help="existing rig to which this distance is added; keeps its crops and lenses"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("rig.yaml"), metavar="RIG", help="rig file to write (default: rig.yaml)"
    )
    parser.add_argument(
        "--overlay", type=Path, metavar="PNG", help="also draw both views on top of each other, before and after"
    )
    add_json(parser)
    add_overwrite(parser, "json", "overlay")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0")
    return value


def _fraction(text: str) -> float:
    value = _positive(text)
    if value > 0.5:
        raise argparse.ArgumentTypeError(f"'{text}' is above 0.5, the largest fraction")
    return value


def _angle(text: str) -> float:
    value = _positive(text)
    if value >= 180:
        raise argparse.ArgumentTypeError(f"'{text}' is not an angle below 180 degrees")
    return value


def _scale_range(text: str) -> tuple[float, float]:
    low, separator, high = text.partition(",")
    if not separator or not 0.1 <= _positive(low) <= _positive(high) <= 10:
        raise argparse.ArgumentTypeError(f"'{text}' is not two scales from 0.1 to 10, such as 0.5,1.5")
    return float(low), float(high)


def _distances(text: str) -> list[float]:
    return [length_m(part) for part in text.split(",")]


def _unit(text: str) -> float:
    return length_m(f"1{text}")


def _size(text: str) -> tuple[int, int]:
    numbers = _whole(text, "x", 2, "a size as HEIGHTxWIDTH such as 512x640")
    return numbers[1], numbers[0]


def _board(text: str) -> tuple[int, int]:
    numbers = _whole(text, "x", 2, "inner corners as 9x6")
    if min(numbers) < 3 or max(numbers) > 64:
        raise argparse.ArgumentTypeError(f"'{text}' is out of range; count from 3 to 64 inner corners each way")
    return numbers[0], numbers[1]


def _crop(text: str) -> tuple[int, int, int, int]:
    numbers = _whole(text, ",", 4, "left, top, width and height such as 0,16,640,480")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _whole(text: str, separator: str, count: int, what: str) -> list[int]:
    parts = text.split(separator)
    if len(parts) != count or not all(part.isascii() and part.isdecimal() and len(part) <= 5 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
    return [int(part) for part in parts]
