"""The figures of a running stream in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PREFIX = "refusion_edge"


def to_prometheus(snapshot: Mapping[str, Any], *, viewers: int) -> str:
    """Format ``Statistics.snapshot`` as counters and gauges.

    Source:
        Prometheus exposition formats, text-based format 0.0.4; names after Frigate's ``..._camera_fps{camera=}``.
    """
    lines: list[str] = []
    for name, kind, text, samples in _families(snapshot, viewers):
        lines += [f"# HELP {_PREFIX}_{name} {text}", f"# TYPE {_PREFIX}_{name} {kind}"]
        lines += [f"{_PREFIX}_{name}{_labels(labels)} {value:.9g}" for labels, value in samples if value is not None]
    return "\n".join(lines) + "\n"


_Samples = list[tuple[dict[str, str], float | None]]


def _families(snapshot: Mapping[str, Any], viewers: int) -> Iterator[tuple[str, str, str, _Samples]]:
    cameras, pairs = snapshot["cameras"], snapshot["pairs"]

    def of_cameras(key: str) -> _Samples:
        return [({"camera": side}, camera[key]) for side, camera in cameras.items()]

    yield "camera_fps", "gauge", "Frames per second of a camera.", of_cameras("rate_hz")
    up: _Samples = [({"camera": side}, float(camera["state"] == "running")) for side, camera in cameras.items()]
    yield "camera_up", "gauge", "1 while a camera delivers frames, else 0.", up
    yield "camera_frames_total", "counter", "Frames delivered by a camera.", of_cameras("in")
    yield "camera_freezes_total", "counter", "Runs of identical frames.", of_cameras("freezes")
    yield "camera_losses_total", "counter", "How often a camera was lost.", of_cameras("losses")
    yield "camera_faults_total", "counter", "How often a camera switched to unusable frames.", of_cameras("faults")
    drops: _Samples = [
        ({"camera": side, "cause": cause}, count)
        for side, camera in cameras.items()
        for cause, count in camera["drops"].items()
    ]
    yield "camera_dropped_total", "counter", "Frames that are part of no pair.", drops
    yield "process_fps", "gauge", "Fused frames per second.", [({}, pairs["rate_hz"])]
    yield (
        "fused_frames_total",
        "counter",
        "Fused frames by mode.",
        [({"mode": mode}, count) for mode, count in pairs["modes"].items()],
    )
    skipped: _Samples = [({"cause": cause}, count) for cause, count in pairs["drops"].items()]
    yield "skipped_total", "counter", "Pairs that were not shown.", skipped
    stages: _Samples = [
        ({"stage": stage, "quantile": quantile}, None if times[key] is None else times[key] / 1000)
        for stage, times in snapshot["stages"].items()
        for quantile, key in (("0.5", "p50_ms"), ("0.95", "p95_ms"), ("0.99", "p99_ms"))
    ]
    yield "stage_seconds", "gauge", "Duration of a stage, quantiles since the start.", stages
    refinement = snapshot["refinement"]
    refined: _Samples = [] if refinement is None else [({}, refinement["correction_px"])]
    yield "refinement_px", "gauge", "Displacement of the view from the rig by online refinement.", refined
    yield "viewers", "gauge", "Connected viewers.", [({}, float(viewers))]


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""
