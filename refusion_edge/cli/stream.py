"""``stream``: fuse two live cameras or two recordings, and show, serve or record the result."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusion_edge.cli.options import (
    add_best_effort,
    add_json,
    add_network,
    add_overwrite,
    add_rebuild,
    add_renamed,
    add_task,
    add_threads,
    add_trust,
    nonempty,
    number_between,
    require_free,
    size_bytes,
)
from refusion_edge.errors import OutputError, RefusionError, UsageError
from refusion_edge.text import redact

if TYPE_CHECKING:
    from refusion_edge.stream.run.settings import StreamSettings

SUMMARY = "fuse two live cameras or videos, paired by time, into a window, a browser, a video or a folder"

# Options that are not settings of the stream; `bundle` is also read by --rebuild.
_OUR_OWN = ("help", "run", "verb", "json", "rebuild", "config", "save_config", "written", "trust", "bundle", "log_json")

# A rate error below this is that of any quartz.
_SHOWN_PPM = 200

_EPILOG = """\
sources: csi://0, v4l2:///dev/video0, rtsp://USER:PASSWORD@HOST/PATH, a video, a folder, frame_%04i.png, 'gst:PIPELINE', test://
outputs: display://0, view://127.0.0.1:8080 (browser), a video (.mp4, .mov, .mkv, .avi, .webm), a folder,
         frame_%04i.png, rtsp://@:8554/fused, 'gst:PIPELINE', shm://NAME, null://
Ctrl-C, SIGTERM or a lost terminal ends a stream cleanly (exit code 130). Example without cameras:
  refusion-edge stream --ir 'test://ir?width=160&height=120&rate=9' --vis 'test://vis?width=160&height=120' -o view://
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stream``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ir", type=nonempty, metavar="URI", help="infrared source (default: from the rig)")
    parser.add_argument("--vis", type=nonempty, metavar="URI", help="visible source (default: from the rig)")
    add_best_effort(parser)
    add_trust(parser)
    parser.add_argument("--replay", type=nonempty, metavar="DIR", help="replay a recording instead of reading two sources")
    parser.add_argument(
        "--config", type=nonempty, metavar="FILE", help="read the settings from a YAML file; options given here take precedence"
    )
    parser.add_argument("--save-config", type=nonempty, metavar="FILE", help="write the settings to a YAML file, and exit")
    parser.add_argument(
        "-o", "--output", dest="outputs", action="append", type=nonempty, metavar="URI",
        help="output; repeatable (default: a window if there is a display and no --headless, otherwise view://127.0.0.1:8080)",
    )  # fmt: skip
    parser.add_argument("--record", type=nonempty, metavar="DIR", help="also record the raw frames and their time stamps")
    parser.add_argument(
        "--record-limit", type=size_bytes, metavar="10GB",
        help="keep only the newest part of the recording, using at most this much space (default: keep all)",
    )  # fmt: skip
    _add_engine(parser)
    _add_pairing(parser)
    _add_image(parser)
    _add_run(parser)
    for action in parser._actions:
        # What is not given must not replace what the configuration file says.
        if action.dest not in _OUR_OWN:
            action.default = argparse.SUPPRESS


def run(options: argparse.Namespace) -> int:
    """Run the stream until it ends, and print its report even after an error or a signal."""
    from refusion_edge.cli.console import output, remarks, write_json
    from refusion_edge.machine import keep_freed_memory
    from refusion_edge.stream.fused_stream import FusedStream
    from refusion_edge.stream.run.config import write_config
    from refusion_edge.stream.site import has_rigs

    if options.config is not None and has_rigs(options.config):
        return _run_site(options)
    overwrite = vars(options).get("overwrite", False)
    if options.save_config is not None:
        vars(options).pop("overwrite", None)  # it is about that file, and must not become a setting unnoticed
    settings = _settings(options)
    if options.save_config is not None:
        require_free(Path(options.save_config), overwrite=overwrite)
        write_config(options.save_config, settings)
        output().print(f"wrote {options.save_config}")
        output().print(f"next: refusion-edge stream --config {options.save_config}")
        return 0
    _require_free_report(options, [settings])
    options.bundle = settings.bundle  # for --rebuild
    if options.rebuild and settings.bundle is None:
        raise _nothing_to_rebuild()
    # Each frame needs the same memory as the one before, and fetching its pages anew costs a third of all but the network.
    keep_freed_memory()
    if options.log_json:
        return _run_logged(settings, options.json)
    stream = FusedStream(settings, announce=remarks().print)
    try:
        stream.run()
    finally:
        report = stream.report()
        if report is not None:
            if options.json:
                write_json(options.json, report)
            if options.json != "-":
                _print_report(report)
    return 0


def _run_site(options: argparse.Namespace) -> int:
    """Run all rigs of a configuration file."""
    from refusion_edge.cli.console import output, remarks, write_json
    from refusion_edge.cli.log import JsonLog
    from refusion_edge.machine import keep_freed_memory
    from refusion_edge.stream.site import Site, read_site

    if options.save_config is not None:
        raise UsageError(
            "--save-config writes the settings of one rig, but the configuration has several", "edit the file itself"
        )
    plans = read_site(options.config, _given(options), trust=options.trust)
    _require_free_report(options, [plan.settings for plan in plans])
    if options.rebuild:
        _rebuild_misfits([plan.settings for plan in plans])
    keep_freed_memory()
    with JsonLog() if options.log_json else contextlib.nullcontext() as log:

        def announce(rig: str, text: str) -> None:
            if log is None:
                remarks().print(f"{rig}: {text}" if rig else text)
            else:
                log.add("info", "stream", redact(text), **({"rig": rig} if rig else {}))

        def listen(rig: str, where: str, text: str) -> None:
            if log is not None:
                log.add("warning", where, text, rig=rig)

        site = Site(plans, announce=announce, listener=listen)
        failure: BaseException | None = None
        try:
            site.run()
        except (RefusionError, KeyboardInterrupt) as error:
            failure = error
        report = site.report()
        try:
            if options.json:
                write_json(options.json, report)
        except OutputError as error:
            failure = failure or error
        if log is not None:
            return log.end(failure)
        if options.json != "-":
            for rig, found in report["rigs"].items():
                restarted = f", restarted {found['restarts']} times" if found["restarts"] else ""
                output().print(f"\nrig {rig}{restarted}{'' if found['error'] is None else ', ended with an error'}")
                if found["report"] is not None:
                    _print_report(found["report"])
        if failure is not None:
            raise failure
    return 0


def _require_free_report(options: argparse.Namespace, every: Sequence[StreamSettings]) -> None:
    from refusion_edge.rig.file import read_rig
    from refusion_edge.stream.uri import choose_source, parse_output

    if not options.json or options.json == "-":
        return
    require_free(Path(options.json), overwrite=all(settings.overwrite for settings in every))
    report = os.path.realpath(options.json)
    for settings in every:
        uris = [*map(parse_output, settings.outputs)]
        if settings.replay is None:
            rig = None if settings.rig is None else read_rig(settings.rig)
            named = (settings.ir, rig.ir.uri if rig else None), (settings.vis, rig.vis.uri if rig else None)
            uris += [uri for names in named if (uri := choose_source(*names, trusted=settings.trust)) is not None]
        if any(uri.scheme == "file" and os.path.realpath(uri.target) == report for uri in uris):
            raise UsageError(f"--json names {options.json}, which is also a source or an output", "choose another name")


def _rebuild_misfits(every: Sequence[StreamSettings]) -> None:
    """Rebuild the bundles that do not fit this machine, before any rig runs: a rig's error ends only that rig."""
    from refusion_edge.bundle.trust import trust_path
    from refusion_edge.cli.build import rebuild
    from refusion_edge.errors import MisfitError
    from refusion_edge.fuser import load

    bundles = {settings.bundle: settings for settings in every if settings.bundle is not None}
    if not bundles:
        raise _nothing_to_rebuild()
    for bundle, settings in bundles.items():
        try:
            if settings.trust:
                trust_path(bundle)
            load(bundle, backend=settings.backend, threads=settings.threads, streaming=True).close()
        except MisfitError as misfit:
            rebuild(bundle, misfit)
        except RefusionError:
            continue  # the rig says it


def _nothing_to_rebuild() -> UsageError:
    return UsageError("--rebuild needs a bundle, and the configuration names none", "add --bundle, or leave --rebuild out")


def _run_logged(settings: StreamSettings, json: str | None) -> int:
    """Run the stream, and write a log in JSON instead of output for people."""
    from refusion_edge.cli.console import write_json
    from refusion_edge.cli.log import JsonLog
    from refusion_edge.stream.fused_stream import FusedStream

    with JsonLog() as log:
        stream = FusedStream(settings, announce=lambda text: log.add("info", "stream", redact(text)))
        stream.listen(lambda where, text: log.add("warning", where, text))
        failure: BaseException | None = None
        try:
            stream.run()
        except (RefusionError, KeyboardInterrupt) as error:
            failure = error
        report = stream.report()
        try:
            if json and report is not None:
                write_json(json, report)
        except OutputError as error:
            failure = failure or error
        return log.end(failure)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--bundle", type=nonempty, metavar="DIR", help="engine bundle from 'build'")
    source.add_argument("--weights", type=nonempty, metavar="FILE", help="weights file: safetensors or official .pth")
    add_task(parser)
    add_network(parser, "auto", also=", or auto: refusion if it keeps up with the cameras here, otherwise fast")
    parser.add_argument("--backend", metavar="NAME", help="back end of the network (default: auto)")
    add_rebuild(parser)
    add_threads(parser)


def _add_pairing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("pairing").add_argument
    add(
        "--policy",
        choices=("nearest", "hold", "drop"),
        help="nearest: pair every frame of the faster camera with the nearest frame of the other, within --max-skew-ms; hold: "
        "with the latest one, for at most --max-age-ms; drop: use every frame at most once (default: nearest)",
    )
    add(
        "--max-skew-ms",
        type=_number,
        metavar="MS",
        help="largest time difference within a pair (default: 0.6 of the measured frame period of the faster camera)",
    )
    add("--max-age-ms", type=_number, metavar="MS", help="how long --policy hold reuses a frame (default: 500)")
    add(
        "--offset-ms",
        type=_number,
        metavar="MS",
        help="offset added to infrared time stamps (default: from the rig, otherwise 0)",
    )
    add(
        "--lost-after-ms",
        type=_number,
        metavar="MS",
        help="time without frames after which a camera counts as lost and the other continues alone (default: 1000)",
    )
    add(
        "--max-freeze-ms",
        type=_number,
        metavar="MS",
        help="time of unchanged infrared content after which the visible camera continues alone (default: 2000)",
    )
    add(
        "--give-up-s",
        type=_number,
        metavar="S",
        help="exit with code 5 once both cameras have been lost for this long (default: 30)",
    )


def _add_image(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("image").add_argument
    add("--rig", type=nonempty, metavar="FILE", help="rig file from 'align'")
    add("--distance", type=_distance, metavar="5m", help="working distance (default: the farthest one of the rig)")
    add(
        "--refine",
        type=_number,
        metavar="PX",
        help="follow slow movement of the camera mount, by at most PX pixels from the alignment in the rig (default: off)",
    )
    add("--resize", action="store_true", help="without a rig: scale infrared frames to the visible size")
    add(
        "--gain",
        choices=("linear", "percentile", "plateau", "clahe"),
        help="gain control of infrared with more than 8 bits; percentile: its own range without outliers, as in fuse "
        "(default: from the rig, otherwise percentile)",
    )
    add(
        "--polarity",
        choices=("white", "black", "auto"),
        help="shade of hot objects in the infrared image (default: from the rig, otherwise white)",
    )
    add(
        "--range",
        dest="output_range",
        choices=("smooth", "stretch", "fixed"),
        help="output range: smooth over time, stretch each frame separately (flickers), or fixed (default: smooth)",
    )
    add("--smooth-s", type=_number, metavar="S", help="time constant of gain and output range (default: 1)")
    add("--gray", action="store_true", help="fused luma only, without the color of the visible camera")
    add_renamed(parser, "--grey", "--gray")
    add("--no-marks", dest="marks", action="store_false", help="do not mark losses, freezes and held frames in the image")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--headless", action="store_true", help="open no window, even if there is a display")
    add("--duration-s", type=_number, metavar="S", help="stop after this time")
    add("--frames", type=_count, metavar="N", help="stop after N fused frames")
    add_renamed(parser, "--pictures", "--frames")
    add(
        "--token",
        type=nonempty,
        metavar="TEXT",
        help="token required from viewers of view:// (default: generated if view:// is reachable from other machines)",
    )
    add(
        "--allow-origin",
        dest="allow_origins",
        action="append",
        type=nonempty,
        metavar="URL",
        help="address under which a reverse proxy serves the page of view://, such as https://cameras.example; repeatable",
    )
    add("--tls", nargs=2, type=nonempty, metavar=("CERT", "KEY"), help="serve view:// over HTTPS with these PEM files")
    add(
        "--clips",
        type=nonempty,
        metavar="DIR",
        help="let viewers of view:// record videos, into this folder (default: they cannot)",
    )
    add(
        "--log-json",
        action="store_true",
        help="write messages, events and errors to standard error as JSON, one object per line, and print no report",
    )
    add("--hash", action="store_true", help="report a SHA-256 of all fused frames (implied by --record and --replay)")
    add_json(parser)
    # The files themselves are those of the settings, which may come from a file, too.
    add_overwrite(parser, what="existing videos, images, recordings and reports, or with --save-config only the file")


def _settings(options: argparse.Namespace) -> StreamSettings:
    from refusion_edge.stream.run.config import read_config
    from refusion_edge.stream.run.settings import StreamSettings, override

    stored = StreamSettings() if options.config is None else read_config(options.config, trust=options.trust)
    return override(stored, {**_given(options), "trust": options.trust})


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Settings on the command line."""
    given = {name: value for name, value in vars(options).items() if name not in _OUR_OWN}
    return given if options.bundle is None else {**given, "bundle": options.bundle}


def _print_report(report: dict[str, Any]) -> None:
    from refusion_edge.cli.console import output, plain_table

    console = output()
    pairs = report["pairs"]
    modes = ", ".join(f"{count} {mode}" for mode, count in pairs["modes"].items() if count) or "none"
    console.print(
        f"{pairs['shown']} fused frames in {report['duration_s']:.1f} s ({modes}); "
        f"{pairs['paired']} pairs, {pairs['held']} held"
    )
    console.print(_network_text(report["network"], report["settings"]["network"], report["engine"]["reopened"]))
    table = plain_table("camera", "in", "used", "dropped", "missing", "freezes", "losses")
    for side, camera in report["cameras"].items():
        dropped = ", ".join(f"{count} {cause}" for cause, count in camera["drops"].items()) or "0"
        row = (camera["in"], camera["used"], dropped, camera["missing_at_source"], camera["freezes"], camera["losses"])
        table.add_row(side, *map(str, row))
    console.print(table)
    clocks = plain_table("camera", "frames per second", "delay", "error", "time stamps")
    for side, camera in report["cameras"].items():
        clocks.add_row(side, *_timing(camera["timing"]))
    console.print(clocks)
    for side, camera in report["cameras"].items():
        for remark in camera["remarks"]:
            console.print(f"{side}: {remark}")
    for text in (*_dropped_texts(pairs), *_recording_texts(report)):
        console.print(text)
    stages = plain_table("stage", "count", "p50 (ms)", "p95 (ms)", "p99 (ms)", "max (ms)")
    for stage, times in report["stages"].items():
        if times["count"]:
            figures = (f"{times[key]:.2f}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
            stages.add_row(stage, str(times["count"]), *figures)
    console.print(stages)
    skew, pixels = report["skew"]["absolute"], report["skew"]["misregistration_px"]
    if skew["count"]:
        moving = f"; {pixels['p95']:.1f} px at the measured motion (p95)" if pixels["count"] else ""
        console.print(f"skew: p50 {skew['p50_ms']:.1f} ms, p95 {skew['p95_ms']:.1f} ms, max {skew['max_ms']:.1f} ms{moving}")
        widest = max(row["pairs"] for row in report["skew"]["histogram_ms"])
        for row in report["skew"]["histogram_ms"]:
            if row["pairs"]:
                low, high = ("" if end is None else f"{end:+d}" for end in (row["from_ms"], row["to_ms"]))
                console.print(f"  {low:>5} to {high:>5} ms  {'#' * max(1, round(40 * row['pairs'] / widest))} {row['pairs']}")
    refinement = report["refinement"]
    if refinement is not None:
        console.print(
            f"refinement: {refinement['correction_px']:.2f} of at most {refinement['bound_px']:g} px from the rig; "
            f"{refinement['moved']} measurements accepted, {refinement['refused']} rejected, {refinement['resets']} resets"
        )
    if report["output_sha256"]:
        console.print(f"SHA-256 of all fused frames: {report['output_sha256']}")


def _dropped_texts(pairs: dict[str, Any]) -> list[str]:
    return [f"pairs not shown: {count} ({cause})" for cause, count in pairs["drops"].items()]


def _recording_texts(report: dict[str, Any]) -> list[str]:
    """What the recording of this run lacks, or the one that was replayed."""
    drops = report["recording"]["drops"].items()
    lost = [
        f"{count} frames or pairs were not written ({cause}), so a replay will differ from this run" for cause, count in drops
    ]
    missing = [event["what"] for event in report["events"] if event["where"] == "recording"]
    return [f"recording: {text}" for text in (*lost, *missing)]


def _network_text(network: dict[str, Any], asked: str | None, reopened: int) -> str:
    """What fused the pairs, and whether it may flicker."""
    how = {
        None: "",
        "smoothed": f", adapted to statistics smoothed over time; {network['scene_cuts']} cuts to another scene",
        "of each frame": ", adapted to the statistics of each frame alone, which may flicker",
    }[network["statistics"]]
    lines = [f"network: {network['name'] or 'unknown'} on {network['backend']}{how}"]
    for before, after in itertools.pairwise(network["used"]):
        lines.append(f"  {before['name']} up to pair {after['first_pair'] - 1}, then {after['name']}")
    if reopened:
        lines.append(
            f"  its engine failed and was reopened {reopened} time{'s' if reopened > 1 else ''}; --json gives the times"
        )
    if asked == "auto" and not network["decisions"]:
        lines.append("  the stream ended before auto had measured the networks")
    return "\n".join(lines)


def _timing(timing: dict[str, Any]) -> tuple[str, str, str, str]:
    """How the times of a source come about, for a row of the table: its rates, delay, how sure they are, and the clock."""
    measured, declared, content = timing["measured_hz"], timing["declared_hz"], timing["content_hz"]
    rates = "unknown" if measured is None else f"{measured:.4g}"
    if declared is not None:
        rates += f" ({declared:.4g} declared)"
    if measured is not None and content is not None and content < 0.8 * measured:
        rates += f", {content:.3g} with new content"
    delay = "unknown" if timing["delay_ms"] is None else f"{timing['delay_ms']:.0f} ms"
    error = "unknown" if timing["error_ms"] is None else f"{timing['error_ms']:.0f} ms"
    clock = timing["clock"] or "none"
    if timing["rate_error_ppm"] is not None and abs(timing["rate_error_ppm"]) >= _SHOWN_PPM:
        clock += f"; its clock runs {timing['rate_error_ppm'] / 1e4:+.2f} %"
    if timing["steps"]:
        clock += f"; stepped {timing['steps']} times"
    return rates, delay, error, clock


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def _distance(text: str) -> float:
    return float("inf") if text in ("inf", "far") else number_between(text.removesuffix("m"), 1e-3, 1e6)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
