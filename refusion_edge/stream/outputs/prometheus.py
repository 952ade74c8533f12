"""The metrics of running streams in the Prometheus text format."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refusion_edge._version import __version__
from refusion_edge.stream.outputs.sensors import Sensors

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "refusion_edge"
_QUANTILES = (("0.5", "p50_ms"), ("0.95", "p95_ms"), ("0.99", "p99_ms"))

Samples = list[tuple[dict[str, str], float | None]]


@dataclass(frozen=True, slots=True)
class RigFigures:
    """Figures of one rig.

    Attributes:
        rig: Its name.
        snapshot: What ``Statistics.snapshot`` returned.
        viewers: Number of its viewers.
    """

    rig: str
    snapshot: Mapping[str, Any]
    viewers: int


def to_prometheus(rigs: Sequence[RigFigures], device: Sensors | None = None) -> str:
    """Format the figures of all rigs, each with the label ``rig``, and those of the device, without it.

    Source:
        Prometheus exposition formats, text-based format 0.0.4; names follow its conventions: base units (seconds, hertz) at the
        end, ``_total`` for counters, ``_info`` for constants.
    """
    families: dict[str, tuple[str, str, Samples]] = {
        "build_info": ("gauge", "Version of the program, always 1.", [(_build(), 1)])
    }
    for name, text, values in _device(device):
        families[name] = ("gauge", text, [({"sensor": sensor}, value) for sensor, value in values.items()])
    for rig in rigs:
        for name, kind, text, samples in _families(rig):
            found = families.setdefault(name, (kind, text, []))[2]
            found += [({"rig": rig.rig, **labels}, value) for labels, value in samples]
    lines: list[str] = []
    for name, (kind, text, samples) in families.items():
        lines += [f"# HELP {_PREFIX}_{name} {text}", f"# TYPE {_PREFIX}_{name} {kind}"]
        for labels, value in samples:
            part = labels.pop("", "")
            if value is not None:
                lines.append(f"{_PREFIX}_{name}{part}{_labels(labels)} {value:.9g}")
    return "\n".join(lines) + "\n"


def _build() -> dict[str, str]:
    return {"version": __version__, "python": platform.python_version(), "machine": platform.machine()}


def _device(sensors: Sensors | None) -> Iterator[tuple[str, str, dict[str, float]]]:
    """What the device has sensors for."""
    if sensors is not None:
        for name, text, values in (
            ("device_temperature_celsius", "Temperature of a part of the device.", sensors.temperatures_celsius()),
            ("device_power_watts", "Power of a part of the device.", sensors.powers_watts()),
        ):
            if values:
                yield name, text, values


def _families(figures: RigFigures) -> Iterator[tuple[str, str, str, Samples]]:
    snapshot = figures.snapshot
    cameras, pairs = snapshot["cameras"], snapshot["pairs"]

    def of_cameras(key: str) -> Samples:
        return [({"camera": side}, camera[key]) for side, camera in cameras.items()]

    def by_cause(drops: Mapping[str, int], **labels: str) -> Samples:
        return [({**labels, "cause": cause}, count) for cause, count in drops.items()]

    yield "camera_frame_rate_hertz", "gauge", "Frames per second of a camera.", of_cameras("rate_hz")
    up: Samples = [({"camera": side}, float(camera["state"] == "running")) for side, camera in cameras.items()]
    yield "camera_up", "gauge", "1 while a camera delivers frames, else 0.", up
    yield "camera_frames_total", "counter", "Frames delivered by a camera.", of_cameras("in")
    yield "camera_freezes_total", "counter", "Runs of identical frames.", of_cameras("freezes")
    yield "camera_losses_total", "counter", "How often a camera was lost.", of_cameras("losses")
    yield "camera_faults_total", "counter", "How often a camera switched to unusable frames.", of_cameras("faults")
    drops = [sample for side, camera in cameras.items() for sample in by_cause(camera["drops"], camera=side)]
    yield "camera_dropped_frames_total", "counter", "Frames that were not paired.", drops
    yield "fused_frame_rate_hertz", "gauge", "Fused frames per second.", [({}, pairs["rate_hz"])]
    fused: Samples = [({"mode": mode}, count) for mode, count in pairs["modes"].items()]
    yield "fused_frames_total", "counter", "Fused frames by mode.", fused
    yield "skipped_pairs_total", "counter", "Pairs that were not shown.", by_cause(pairs["drops"])
    yield (
        "stage_duration_seconds",
        "summary",
        "Duration of a stage, with quantiles since the start.",
        [sample for stage, times in snapshot["stages"].items() for sample in _summary({"stage": stage}, times)],
    )
    skew = _summary({}, snapshot["skew"]["absolute"])
    yield "pair_skew_seconds", "summary", "Time between the two frames of a pair.", skew
    yield "engine_reopens_total", "counter", "How often the engine failed and was reopened.", [
        ({}, snapshot["engine"]["reopened"])
    ]  # fmt: skip
    lost = by_cause(snapshot["recording"]["drops"])
    yield "recording_lost_items_total", "counter", "Frames and outcomes of pairs missing from the recording.", lost
    outputs = snapshot["outputs"]
    written: Samples = [({"output": name}, output.get("frames", 0)) for name, output in outputs.items()]
    yield "output_frames_total", "counter", "Frames written by an output.", written
    lost = [sample for name, output in outputs.items() for sample in by_cause(output["drops"], output=name)]
    yield "output_dropped_frames_total", "counter", "Frames that an output missed.", lost
    yield "events_total", "counter", "Events in the report.", [({}, snapshot["events_total"])]
    refinement = snapshot["refinement"]
    refined: Samples = [] if refinement is None else [({}, refinement["correction_px"])]
    yield "refinement_displacement_pixels", "gauge", "Displacement of the view from the rig by online refinement.", refined
    yield "viewers", "gauge", "Connected viewers.", [({}, float(figures.viewers))]


def _summary(labels: dict[str, str], times: Mapping[str, Any]) -> Samples:
    """Quantiles, sum and count of a distribution; the label without a name is the end of the metric's name."""
    count = times["count"]
    total_s = 0.0 if not count else times["mean_ms"] * count / 1000
    quantiles: Samples = [
        ({**labels, "quantile": quantile}, None if times[key] is None else times[key] / 1000) for quantile, key in _QUANTILES
    ]
    return [*quantiles, ({"": "_sum", **labels}, total_s), ({"": "_count", **labels}, count)]


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""
