"""An object detector on the fused frames of two cameras or videos, whose boxes are drawn into a video.

    python -m examples.detector --ir IR --vis VIS --model detector.onnx -o boxes.mkv

The detector is an ONNX file, run by ONNX Runtime, with one input, (1, 3, H, W) float32 RGB in [0, 1], and one output,
(1, N, 6) float32: left, top, right, bottom in pixels of the input, score and class. That is what
``yolo export model=yolo11n.pt format=onnx nms=True`` writes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

import refusion_edge as rf
from refusion_edge.arrays import Uint8Array
from refusion_edge.errors import BackendError, InputError

_USUAL_SIDE = 640
_BORDER = 114  # what such networks saw around images in their training


@dataclass(frozen=True, slots=True)
class Box:
    """A detected object.

    Attributes:
        left_top: First corner, in pixels of the image.
        right_bottom: Opposite corner.
        score: Confidence, [0, 1].
        label: Number of the class.
    """

    left_top: tuple[int, int]
    right_bottom: tuple[int, int]
    score: float
    label: int


class Detector:
    """Finds objects in images.

    Args:
        model: The ONNX file.
        least_score: Boxes below it are left out.

    Raises:
        BackendError: ONNX Runtime cannot load the model.
        InputError: The model has other inputs or outputs.
    """

    def __init__(self, model: Path, *, least_score: float = 0.4) -> None:
        try:
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise BackendError(f"ONNX Runtime cannot load {model}", "check the path and the file") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(
                f"{model} has {len(inputs)} inputs and {len(outputs)} outputs", "give a detector with one input and one output"
            )
        self._name = inputs[0].name
        height, width = (side if isinstance(side, int) else _USUAL_SIDE for side in inputs[0].shape[2:])
        self._size_wh = width, height
        self._least_score = least_score

    def detect(self, image: Uint8Array) -> list[Box]:
        """Find objects in an image, (H, W, 3) BGR.

        Raises:
            InputError: The model returns something else than boxes.
        """
        # The whole image, in its proportions, in the middle of the input.
        scale = min(wanted / side for wanted, side in zip(self._size_wh, image.shape[1::-1], strict=True))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        left, top = ((wanted - side) // 2 for wanted, side in zip(self._size_wh, small.shape[1::-1], strict=True))
        padded = np.full((self._size_wh[1], self._size_wh[0], 3), _BORDER, np.uint8)
        padded[top : top + small.shape[0], left : left + small.shape[1]] = small
        tensor = np.ascontiguousarray(padded[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255
        rows = self._session.run(None, {self._name: tensor})[0]
        if rows.ndim != 3 or rows.shape[2] != 6:
            raise InputError(
                f"the detector returns {rows.shape}", "export it with nms=True", expected=(1, "N", 6), got=rows.shape
            )
        rows = rows[0][rows[0, :, 4] >= self._least_score]
        corners = np.rint((rows[:, :4] - (left, top, left, top)) / scale).astype(int).tolist()
        return [
            Box((x0, y0), (x1, y1), float(score), int(label))
            for (x0, y0, x1, y1), (score, label) in zip(corners, rows[:, 4:].tolist(), strict=True)
        ]


def draw(image: Uint8Array, boxes: list[Box]) -> None:
    """Draw boxes into an image, (H, W, 3) BGR."""
    for box in boxes:
        cv2.rectangle(image, box.left_top, box.right_bottom, (0, 255, 0), 2)
        cv2.putText(image, f"{box.label}: {box.score:.2f}", box.left_top, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 255, 0))


def main() -> int:
    """Detect in every fused frame, and write the frames with their boxes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ir", required=True, metavar="URI", help="infrared source, as 'refusion-edge stream' takes it")
    parser.add_argument("--vis", required=True, metavar="URI", help="visible source")
    parser.add_argument("--model", type=Path, required=True, metavar="ONNX", help="detector, see above")
    parser.add_argument("-o", "--output", required=True, metavar="URI", help="output of 'refusion-edge stream'")
    parser.add_argument("--least-score", type=float, default=0.4, metavar="SCORE", help="least score of a box (default: 0.4)")
    options = parser.parse_args()
    detector = Detector(options.model, least_score=options.least_score)
    count = 0
    with rf.open_sink(options.output) as sink:
        for frame in rf.stream(options.ir, options.vis, network="auto"):
            boxes = detector.detect(frame.image)
            draw(frame.image, boxes)
            sink.write(frame)
            count += len(boxes)
    print(f"drew {count} boxes into {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
