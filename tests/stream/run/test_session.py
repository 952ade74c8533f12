"""Engines that a session opens."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.export.build import build
from refusion_edge.fuser import load
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from tests.stream.conftest import camera

SPINNING = "session.intra_op.allow_spinning"


@pytest.fixture
def spinning(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Spinning option of every ONNX Runtime session that is opened."""
    told: list[str] = []
    opened = ort.InferenceSession

    def open_session(model: bytes, options: ort.SessionOptions, **rest: object) -> ort.InferenceSession:
        told.append(options.get_session_config_entry(SPINNING))
        return opened(model, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", open_session)
    return told


@pytest.mark.parametrize("source", ["weights", "bundle"])
def test_threads_sleep_between_the_frames_of_a_stream(source: str, spinning: list[str]) -> None:
    engine = {"backend": "onnxruntime"}
    if source == "bundle":
        build(BuildSpec("ir_vis", "fp32", "onnxruntime", size_hw=(48, 64), output=Path("bundle")))
        engine["bundle"] = "bundle"
    spinning.clear()
    files = {side: camera(side, live=0, frames=2) for side in ("ir", "vis")}
    StreamSession(StreamSettings(**files, **engine, outputs=("null://",), threads=1)).run()
    assert spinning == ["0"]


def test_threads_for_single_images_do_not_sleep(spinning: list[str]) -> None:
    with load("ir_vis", backend="onnxruntime", threads=1) as fuser:
        assert isinstance(fuser.backend, OrtBackend)
    assert spinning == ["1"]
