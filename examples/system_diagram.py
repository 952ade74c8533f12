"""Draw the system diagram of docs/architecture.md: training, export, engines and stream.

python -m examples.system_diagram [-o docs/images/system.svg]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

WIDTH, HEIGHT = 1300, 896
LEFT, COLUMN, BOX_WIDTH = 130, 192, 164
TITLE_PX, DETAIL_PX = 15, 12
ADVANCE = 0.62  # advance of a character over the font size, as in DejaVu Sans; other sans-serif fonts are narrower

Kind = Literal["step", "file", "hardware"]
FILL: dict[Kind, str] = {"step": "#ffffff", "file": "#fff4d6", "hardware": "#e4f1e4"}


@dataclass(frozen=True, slots=True)
class Box:
    """One part: a title, and up to two lines below it. ``x`` and ``y`` are its top left corner in pixels."""

    title: str
    details: tuple[str, ...]
    x: int
    y: int
    kind: Kind = "step"
    height: int = 74

    @property
    def right(self) -> tuple[int, int]:
        """Middle of the right edge."""
        return self.x + BOX_WIDTH, self.y + self.height // 2

    @property
    def left(self) -> tuple[int, int]:
        """Middle of the left edge."""
        return self.x, self.y + self.height // 2

    @property
    def top(self) -> tuple[int, int]:
        """Middle of the top edge."""
        return self.x + BOX_WIDTH // 2, self.y

    @property
    def bottom(self) -> tuple[int, int]:
        """Middle of the bottom edge."""
        return self.x + BOX_WIDTH // 2, self.y + self.height

    @property
    def text_width(self) -> float:
        """Width in pixels that the widest line takes at most."""
        return ADVANCE * max(TITLE_PX * len(self.title), *(DETAIL_PX * len(line) for line in self.details))


def column(number: int) -> int:
    """Left edge of a column in pixels."""
    return LEFT + number * COLUMN


# Lanes from top to bottom: name, top, height.
LANES = (
    ("Training", 16, 184),
    ("Export", 216, 148),
    ("Engines", 380, 200),
    ("Stream", 596, 284),
)

PAIRS = Box("image pairs", ("one folder per source",), column(0), 92, "file")
PROPOSAL = Box("P: loss proposal", ("weight of each source", "for every pixel"), column(1), 92)
FUSION = Box("F: fusion network", ("two luma planes in,", "fused plane out"), column(2), 92)
RECONSTRUCTION = Box("R: reconstruction", ("both sources from", "the fused image"), column(3), 92)

WEIGHTS = Box("weights", ("safetensors or .pth",), column(0), 270, "file")
GRAPH = Box("ONNX graph", ("one layout", "per runtime"), column(1), 270)
QUANTIZE = Box("INT8 (optional)", ("ranges from", "calibration pairs"), column(2), 270)
BUILDER = Box("builder", ("compiles the engine", "for one target"), column(3), 270)
GATE = Box("accuracy gate", ("against the", "fp32 reference"), column(4), 270)
BUNDLE = Box("bundle", ("engine, model.onnx,", "weights, manifest"), column(5), 270, "file")

ENGINES = (
    Box("onnxruntime", ("any CPU",), column(0), 480, "hardware"),
    Box("openvino", ("CPU",), column(1), 480, "hardware"),
    Box("native", ("C++ kernels, CPU",), column(2), 480, "hardware"),
    Box("eager", ("PyTorch, from weights",), column(3), 480, "hardware"),
    Box("tensorrt(-rtx)", ("NVIDIA GPU",), column(4), 480, "hardware"),
    Box("fused", ("Triton kernels,", "NVIDIA GPU"), column(5), 480, "hardware"),
)

INFRARED = Box("infrared camera", ("frames with times",), column(0), 636, "hardware")
VISIBLE = Box("visible camera", ("frames with times",), column(0), 758, "hardware")
PAIRING = Box("pairing", ("by sensor time; covers", "freezes and losses"), column(1), 697)
WARP = Box("gain and warp", ("16 bit to luma, one", "view onto the other"), column(2), 697)
FUSE = Box("fuse", ("any engine", "from above"), column(3), 697)
FINISH = Box("range and color", ("smoothed over time,", "joined with chroma"), column(4), 697)
OUTPUTS = Box("outputs", ("window, browser,", "video, RTSP"), column(5), 697, "file")
RIG = Box("rig.yaml", ("written by align",), column(2), 804, "file", 58)

BOXES = (
    PAIRS, PROPOSAL, FUSION, RECONSTRUCTION, WEIGHTS, GRAPH, QUANTIZE, BUILDER, GATE, BUNDLE, *ENGINES,
    INFRARED, VISIBLE, PAIRING, WARP, FUSE, FINISH, OUTPUTS, RIG,
)  # fmt: skip

FRAME = (column(0) - 14, 440, column(5) + BOX_WIDTH + 14, 568)
"""Corners of the frame around the engines: left, top, right, bottom."""

# Corners of each arrow, the head at the last one.
ARROWS = (
    (PAIRS.right, PROPOSAL.left),
    (PROPOSAL.right, FUSION.left),
    (FUSION.right, RECONSTRUCTION.left),
    (RECONSTRUCTION.top, (RECONSTRUCTION.top[0], 62), (PROPOSAL.top[0], 62), PROPOSAL.top),
    (FUSION.bottom, (FUSION.bottom[0], 208), (WEIGHTS.top[0], 208), WEIGHTS.top),
    *((a.right, b.left) for a, b in zip((WEIGHTS, GRAPH, QUANTIZE, BUILDER, GATE),
                                        (GRAPH, QUANTIZE, BUILDER, GATE, BUNDLE), strict=True)),
    (BUNDLE.bottom, (BUNDLE.bottom[0], FRAME[1])),
    ((FUSE.top[0], FRAME[3]), FUSE.top),
    (INFRARED.right, (PAIRING.top[0], INFRARED.right[1]), PAIRING.top),
    (VISIBLE.right, (PAIRING.bottom[0], VISIBLE.right[1]), PAIRING.bottom),
    *((a.right, b.left) for a, b in zip((PAIRING, WARP, FUSE, FINISH), (WARP, FUSE, FINISH, OUTPUTS), strict=True)),
    (RIG.top, WARP.bottom),
)  # fmt: skip

# Text beside arrows: middle of the line, baseline, text.
NOTES = (
    ((PROPOSAL.top[0] + RECONSTRUCTION.top[0]) // 2, 54, "meta-gradient: P learns what makes F easier to reconstruct from"),
    ((FRAME[0] + FRAME[2]) // 2, 464, "one interface: luma planes a and b in, fused plane out"),
)


def draw() -> str:
    """The diagram as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif" text-anchor="middle" fill="#1f2933">',
        "<title>refusion-edge: training, export, engines and stream</title>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#52606d"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for name, top, height in LANES:
        parts.append(f'<rect x="12" y="{top}" width="{WIDTH - 24}" height="{height}" rx="8" fill="#f3f6f9"/>')
        parts.append(_text(62, top + height // 2 + 5, name, TITLE_PX + 1, bold=True))
    left, top, right, bottom = FRAME
    parts.append(_rectangle(left, top, right - left, bottom - top, "#eaf0f6"))
    for corners in ARROWS:
        points = " ".join(f"{x},{y}" for x, y in corners)
        parts.append(f'<polyline points="{points}" fill="none" stroke="#52606d" stroke-width="1.5" marker-end="url(#head)"/>')
    for box in BOXES:
        parts.append(_rectangle(box.x, box.y, BOX_WIDTH, box.height, FILL[box.kind]))
        middle, line = box.x + BOX_WIDTH // 2, DETAIL_PX + 4
        baseline = box.y + (box.height - TITLE_PX - line * len(box.details)) // 2 + TITLE_PX - 3
        parts.append(_text(middle, baseline, box.title, TITLE_PX, bold=True))
        parts += [_text(middle, baseline + line * n, text, DETAIL_PX) for n, text in enumerate(box.details, 1)]
    parts += [_text(x, y, text, DETAIL_PX) for x, y, text in NOTES]
    return "\n".join([*parts, "</svg>", ""])


def _rectangle(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="#9aa5b1"/>'


def _text(x: int, y: int, text: str, size: int, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}"{weight}>{escape(text)}</text>'


def main() -> None:
    """Write the diagram."""
    parser = argparse.ArgumentParser(description="Draw the system diagram of docs/architecture.md.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/system.svg"), metavar="FILE")
    parser.parse_args().output.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
