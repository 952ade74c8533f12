"""A detector behind fusion: boxes come back to the pixels of the frame, and into the video."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from examples.detector import Box, Detector, draw, main
from refusion_edge.errors import BackendError, InputError
from tests.raising import raises
from tests.stream.conftest import camera, frames_of


def write_detector(path: str, *, side: int = 64, columns: int = 6) -> None:
    """Write a detector that always reports two boxes, the first one with the brightness of the image as its score."""
    boxes = np.array([[[16, 24, 48, 40, 0, 7], [0, 0, 9, 9, 0.1, 1]]], np.float32)[..., :columns]
    column = np.zeros_like(boxes)
    column[0, 0, 4 % columns] = 1
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["column", "mean"], ["score"]),
        helper.make_node("Add", ["boxes", "score"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(boxes.shape))],
        [numpy_helper.from_array(boxes, "boxes"), numpy_helper.from_array(column, "column")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_boxes_are_in_pixels_of_the_frame() -> None:
    write_detector("detector.onnx")
    # Twice as wide as the input, in its proportions: 64x48, with 8 rows above and below.
    image = np.full((96, 128, 3), 204, np.uint8)
    (box,) = Detector(Path("detector.onnx")).detect(image)
    assert (box.left_top, box.right_bottom, box.label) == ((32, 32), (96, 64), 7)
    mean = (204 * 48 + 114 * 16) / 64 / 255
    assert box.score == pytest.approx(mean, abs=0.01)
    assert len(Detector(Path("detector.onnx"), least_score=0.05).detect(image)) == 2
    assert Detector(Path("detector.onnx"), least_score=0.9).detect(image) == []
    draw(image, [box])
    assert (image[32, 40] == (0, 255, 0)).all()
    assert (image[50, 60] == 204).all()


def test_models_that_detect_nothing_are_refused() -> None:
    write_detector("five.onnx", columns=5)
    with raises(InputError, remedy="nms", got=(1, 2, 5)):
        Detector(Path("five.onnx")).detect(np.zeros((64, 64, 3), np.uint8))
    Path("text.onnx").write_text("no model")
    with raises(BackendError, "text.onnx"):
        Detector(Path("text.onnx"))
    assert Box((0, 0), (1, 1), 1.0, 0).label == 0


def test_the_boxes_of_two_videos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_detector("detector.onnx")
    words = ["--ir", camera("ir", live=0, frames=2), "--vis", camera("vis", live=0, frames=2), "--least-score", "0.05"]
    monkeypatch.setattr(sys, "argv", ["detector", *words, "--model", "detector.onnx", "-o", "boxes.mkv"])
    assert main() == 0
    assert frames_of("boxes.mkv") == 2
    assert "4 boxes" in capsys.readouterr().out
