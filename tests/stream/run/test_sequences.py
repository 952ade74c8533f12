"""Sequences at 9 and 30 Hz from rendered and real pairs: pairing, skew in pixels, and an identical replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.two_rates import Swing, write_sequences
from refusion_edge.images.pairs import PairPaths, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.stream.frames import MS, SECOND
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.pairing.pairer import Policy
from tests.stream.conftest import explained

SWING = Swing(seconds=2.0, period_s=2.0)
FRAMES = {"ir": int(SWING.seconds * SWING.ir_hz), "vis": int(SWING.seconds * SWING.vis_hz)}
REAL = "msrs__00710N"


@pytest.fixture(params=["sample", REAL])
def sequences(request: pytest.FixtureRequest) -> dict[str, str]:
    """Two folders, as if recorded by two cameras, made from one pair."""
    if request.param == "sample":
        paths = sample_paths("ir_vis")[0]
    else:
        folder: Path = request.getfixturevalue("shared_data") / "ir_vis" / "test"
        paths = PairPaths(request.param, *(next((folder / side).glob(f"{request.param}.*")) for side in ("ir", "vis")))
    write_sequences(read_pair(paths), Path("cameras"), SWING)
    return {"ir": "cameras/ir", "vis": "cameras/vis"}


@pytest.mark.parametrize(
    ("policy", "limit_ms"),
    [("nearest", 0.6 * 1000 / SWING.vis_hz), pytest.param("hold", 500.0, marks=pytest.mark.slow)],
)
def test_two_rates_are_paired_recorded_and_replayed(
    stream: Callable[..., tuple[dict[str, Any], Any]], sequences: dict[str, str], policy: Policy, limit_ms: float
) -> None:
    first, _ = stream(**sequences, policy=policy, record="recording", hash=True)
    assert {side: camera["in"] for side, camera in first["cameras"].items()} == FRAMES
    assert explained(first)
    assert first["cameras"]["ir"]["used"] >= FRAMES["ir"] - 1
    assert first["cameras"]["ir"]["dtype"] == "uint16"
    assert not first["cameras"]["ir"]["freezes"]
    assert first["skew"]["absolute"]["max_ms"] <= limit_ms
    # The recording holds what the cameras delivered, to the bit and the nanosecond.
    recording = read_recording(Path("recording"))
    times_ns = {side: [row[3] for row in recording.rows if row[0] == side] for side in FRAMES}
    assert times_ns["ir"] == [round(number * SECOND / SWING.ir_hz) for number in range(FRAMES["ir"])]
    assert times_ns["vis"] == [
        round(number * SECOND / SWING.vis_hz + SWING.vis_late_ms * MS) for number in range(FRAMES["vis"])
    ]
    # Every visible frame with an infrared one within the limit, from the fifth infrared frame on, which makes the rates known.
    near = np.abs(np.subtract.outer(times_ns["vis"], times_ns["ir"])).min(axis=1) <= limit_ms * MS
    known = np.array(times_ns["vis"]) > times_ns["ir"][4]
    assert (near & known).sum() <= first["pairs"]["shown"] <= near.sum()
    # The replay, and the two folders of the recording as sources, give the same pairs and fused frames.
    replayed, _ = stream(replay="recording", hash=True)
    from_folders, _ = stream(ir="recording/ir", vis="recording/vis", policy=policy, hash=True)
    for report in (replayed, from_folders):
        assert report["output_sha256"] == first["output_sha256"]
        assert report["skew"] == first["skew"]


def test_the_skew_is_told_in_pixels_of_the_motion(
    stream: Callable[..., tuple[dict[str, Any], Any]], sequences: dict[str, str]
) -> None:
    report, _ = stream(**sequences, policy="hold")
    frame = read_pair(PairPaths("first", Path("cameras/ir/000000.png"), Path("cameras/vis/000000.png"))).b
    # The margin beside a window of three quarters, at the fastest point of the swing.
    peak_px_s = np.pi * (frame.shape[1] / 3) / SWING.period_s
    assert 0.6 * peak_px_s < report["skew"]["speed_px_s"]["p90"] < 1.1 * peak_px_s
    assert 0 < report["skew"]["misregistration_px"]["p99"] < peak_px_s / SWING.ir_hz
