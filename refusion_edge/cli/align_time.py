"""``align time``: measure the clock offset between two cameras and write it into their rig."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import (
    add_best_effort,
    add_json,
    add_overwrite,
    add_trust,
    length_m,
    nonempty,
    number_between,
    require_free,
)

if TYPE_CHECKING:
    from refusion_edge.arrays import Array
    from refusion_edge.calibration.rig.timing import MotionTrack, TimeOffset
    from refusion_edge.rig.model import Rig
    from refusion_edge.stream.frames import Side

SUMMARY = "measure the time offset between the cameras of a rig from motion that both see"
_SCHEMA = "refusion-edge/time-offset/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``align time``."""
    parser.description = (
        "measure the clock offset between two cameras, from a recording of 'stream --record' or live from both, and write it "
        "into the rig; something has to move through the view, ideally back and forth"
    )
    parser.add_argument("rig", type=Path, metavar="RIG", help="rig file of two aligned cameras")
    parser.add_argument("--recording", type=Path, metavar="DIR", help="recording of 'stream --record'")
    parser.add_argument("--ir", type=nonempty, metavar="URI", help="infrared source (default: that of the rig)")
    parser.add_argument("--vis", type=nonempty, metavar="URI", help="visible source (default: that of the rig)")
    parser.add_argument(
        "--distance", type=length_m, metavar="5m", help="working distance (default: the farthest one of the rig)"
    )
    parser.add_argument(
        "--duration-s", type=_seconds, default=20.0, metavar="S", help="how long to read the sources (default: 20)"
    )
    parser.add_argument(
        "--max-offset-ms", type=_milliseconds, default=500.0, metavar="MS", help="largest offset to search for (default: 500)"
    )
    add_trust(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="RIG", help="rig file to write (default: RIG itself)")
    add_best_effort(parser)
    add_json(parser)
    add_overwrite(parser, "json")


def run(options: argparse.Namespace) -> int:
    """Measure, then print and write the result."""
    from dataclasses import asdict, replace

    from refusion_edge.calibration.rig.timing import measure_offset
    from refusion_edge.cli.console import print_facts, write_json
    from refusion_edge.rig.file import read_rig, write_rig

    rig = read_rig(options.rig)
    output = options.output or options.rig
    if os.path.realpath(output) != os.path.realpath(options.rig):  # its own rig is what it corrects
        require_free(output, overwrite=options.overwrite)
    tracks = _tracks(options, rig)
    found = measure_offset(tracks["ir"], tracks["vis"], most_ms=options.max_offset_ms)
    write_rig(output, replace(rig, time_offset_ms=found.offset_ms, time_error_ms=found.error_ms))
    if options.json:
        write_json(options.json, {"schema": _SCHEMA, **asdict(found)})
    if options.json != "-":
        print_facts(_facts(found, rig))
        print(f"wrote {output}")
    return 0


def _facts(found: TimeOffset, rig: Rig) -> dict[str, object]:
    before = "none" if rig.time_offset_ms is None else f"{rig.time_offset_ms:.1f} ms"
    return {
        "Time offset": f"{found.offset_ms:.1f} ms is added to infrared time stamps (standard error {found.error_ms:.1f} ms)",
        "Measured": f"over {found.duration_s:.1f} s of both cameras; their motion correlates by {found.correlation:.2f}",
        "Before": before,
    }


def _tracks(options: argparse.Namespace, rig: Rig) -> dict[Side, MotionTrack]:
    from refusion_edge.calibration.rig.timing import MotionTrack
    from refusion_edge.errors import UsageError
    from refusion_edge.rig.warp import make_warp

    warp = make_warp(rig, options.distance)
    views = {"ir": warp.ir, "vis": warp.vis}
    tracks: dict[Side, MotionTrack] = {"ir": MotionTrack(), "vis": MotionTrack()}

    def take(side: Side, image: Array, time_ns: int) -> None:
        tracks[side].add(views[side].apply(image), time_ns)

    if options.recording is not None:
        from refusion_edge.stream.outputs.recording import read_recording

        if options.ir or options.vis:
            raise UsageError("--recording holds both sources", "leave out --ir and --vis")
        recording = read_recording(options.recording)
        for number in range(len(recording.rows)):
            frame = recording.read(number)
            take(frame.side, frame.image, frame.time_ns)
        return tracks
    from refusion_edge.stream.sources.registry import open_pair
    from refusion_edge.stream.sources.watching import watch
    from refusion_edge.stream.uri import choose_source

    ir = choose_source(options.ir, rig.ir.uri, trusted=options.trust)
    vis = choose_source(options.vis, rig.vis.uri, trusted=options.trust)
    if ir is None or vis is None:
        raise UsageError("two sources are needed", "give --ir and --vis, a rig that names them, or --recording")
    sources = open_pair(ir, vis, best_effort=options.best_effort)
    if sources[0].live != sources[1].live:
        raise UsageError("the clocks of a camera and a file are unrelated", "give two cameras or two files")
    watch(sources, options.duration_s, take)
    return tracks


def _seconds(text: str) -> float:
    return number_between(text, 3, 600)


def _milliseconds(text: str) -> float:
    return number_between(text, 1, 10_000)
