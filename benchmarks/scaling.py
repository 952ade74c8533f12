"""Predicting time, memory and energy at other sizes from a sweep: a fixed part plus a part per megapixel.

python -m benchmarks.scaling sweep.jsonl [more.jsonl ...] [--fps 30] [--device NAME:GFLOPS:GBPS ...] [--write docs/scaling.md]

Takes the JSON lines of ``refusion-edge bench ENGINE --sizes ... --lines FILE``; at least three sizes. Prints the model of each
engine with its residuals, and its predictions. --device adds predictions for machines without measurements, from their
arithmetic and memory rates; they are marked as a model. --write puts the text between the markers of a page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refusion_edge.bench.history import read_rows
from refusion_edge.bench.limits import Limits, roofline
from refusion_edge.bench.measurement import Row
from refusion_edge.errors import InputError
from refusion_edge.files import write_atomically
from refusion_edge.network.cost import refusion_work

BEGIN, END = "<!-- fit: begin -->", "<!-- fit: end -->"
LEAST_SIZES = 3
_SIZES_HW = ((120, 160), (256, 320), (480, 640), (512, 640), (720, 1280), (1080, 1920))


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line over the number of pixels.

    Attributes:
        fixed: Value at no pixels.
        per_megapixel: Growth for 10^6 pixels.
        residual: Largest distance of a measured value from the line, as a share of it.
    """

    fixed: float
    per_megapixel: float
    residual: float

    def at(self, pixels: float) -> float:
        """Value at a number of pixels."""
        return self.fixed + self.per_megapixel * pixels / 1e6


@dataclass(frozen=True, slots=True)
class Model:
    """Model fitted to one engine.

    Attributes:
        engine: Its name, precision, back end and threads.
        precision: Its precision.
        sizes: Sizes that were measured, smallest first.
        time_ms: Median end to end.
        memory_mib: Memory that the engine added; None where it was not measured.
        energy_mj: Energy of a pair; None where nothing counts it.
        roofline_share: Median over the sizes of the share of the roofline; None where it was not measured.
    """

    engine: str
    precision: str
    sizes: tuple[str, ...]
    time_ms: Line
    memory_mib: Line | None
    energy_mj: Line | None
    roofline_share: float | None


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that nothing was measured on.

    Attributes:
        name: Its name.
        limits: Its rates.
    """

    name: str
    limits: Limits


def main() -> int:
    """Fit, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="+", type=Path, help="JSON lines of bench")
    parser.add_argument("--fps", type=float, default=30.0, help="rate of a camera (default: 30)")
    parser.add_argument("--device", action="append", default=[], type=_device, metavar="NAME:GFLOPS:GBPS")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the text between the markers of this page")
    options = parser.parse_args()
    text = describe(options.lines, options.fps, options.device)
    if options.write:
        write_atomically(options.write, put(options.write.read_text(), text).encode())
    else:
        print(text, end="")
    return 0


def describe(paths: Sequence[Path], fps: float, devices: Sequence[Device] = ()) -> str:
    """All tables as Markdown.

    Raises:
        InputError: A file is something else, or holds fewer than three stable sizes of every engine.
    """
    parts = []
    for path in paths:
        configuration, rows = read_rows(path)
        models = fit(rows)
        if not models:
            raise InputError(f"{path} holds fewer than {LEAST_SIZES} stable sizes of one engine", "measure more --sizes")
        parts.append(_conditions(configuration))
        parts.append(_models(models))
        parts.append(_consequences(models, fps))
        parts += [_predictions(models, device) for device in devices]
    return "\n".join(parts)


def fit(rows: Sequence[Row]) -> list[Model]:
    """Fit a model to every engine with at least three stable sizes."""
    engines: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in rows:
        one = row.identity
        if row.stages is not None:
            engines.setdefault((one.name, one.precision, one.backend, one.threads), []).append(row)
    models = []
    for (name, precision, backend, threads), found in engines.items():
        ordered = sorted(found, key=lambda row: row.identity.pixels)
        pixels = np.array([row.identity.pixels for row in ordered], np.float64)
        if len(set(pixels)) < LEAST_SIZES:
            continue
        shares = [row.roofline.share for row in ordered if row.roofline is not None]
        models.append(
            Model(
                f"{name} {precision}, `{backend}`, {threads or 'its own choice of'} thread{'' if threads == 1 else 's'}",
                precision,
                tuple(row.identity.size_text for row in ordered),
                straight_line(pixels, [row.stages["end_to_end"].median_ms for row in ordered if row.stages is not None]),
                _line_if_known(pixels, [row.memory.added_mib for row in ordered]),
                _line_if_known(pixels, [row.energy_mj for row in ordered]),
                float(np.median(shares)) if shares else None,
            )
        )
    return models


def straight_line(pixels: NDArray[np.float64], values: Sequence[float]) -> Line:
    """Fit ``fixed + per_megapixel * megapixels`` so that the squared shares by which it misses are least.

    Args:
        pixels: (n,), at least two different ones.
        values: (n,), above 0.
    """
    measured = np.array(values)
    design = np.stack([np.ones_like(pixels), pixels / 1e6], axis=1) / measured[:, None]
    (fixed, slope), *_ = np.linalg.lstsq(design, np.ones_like(measured), rcond=None)
    predicted = fixed + slope * pixels / 1e6
    return Line(float(fixed), float(slope), float(np.max(np.abs(predicted - measured) / measured)))


def put(page: str, text: str) -> str:
    """Replace the text between the markers of a page.

    Raises:
        InputError: It has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"the page lacks the markers {BEGIN} and {END}", "put them where the tables belong")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def _line_if_known(pixels: NDArray[np.float64], values: Sequence[float | None]) -> Line | None:
    known = [value for value in values if value is not None and value > 0]
    return straight_line(pixels, known) if len(known) == len(values) else None


def _conditions(configuration: dict[str, Any]) -> str:
    machine, versions = configuration["machine"], configuration["versions"]
    return (
        f"{machine['processor']}, {machine['cores']} cores; {', '.join(f'{name} {one}' for name, one in versions.items())}.\n"
    )


def _models(models: Sequence[Model]) -> str:
    lines = [
        "| engine | sizes | time, ms | off by at most | memory, MiB | off by at most | energy, mJ | of the roofline |",
        "| --- | --- | --- | ---: | --- | ---: | --- | ---: |",
    ]
    for model in models:
        share = "-" if model.roofline_share is None else f"{model.roofline_share:.0%}"
        cells = [
            model.engine, f"{model.sizes[0]} to {model.sizes[-1]} ({len(model.sizes)})", _formula(model.time_ms),
            _residual(model.time_ms), _formula(model.memory_mib), _residual(model.memory_mib), _formula(model.energy_mj), share,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _consequences(models: Sequence[Model], fps: float) -> str:
    lines = [
        f"By this model, pairs in a second, cameras at {fps:g} fps that one device serves one after the other, and hours that "
        "it takes to fuse a million pairs:\n",
        f"| engine | {' | '.join(f'{height}x{width}' for height, width in _SIZES_HW)} |",
        f"| --- |{' ---: |' * len(_SIZES_HW)}",
    ]
    for model in models:
        times_ms = [model.time_ms.at(height * width) for height, width in _SIZES_HW]
        cells = [_rate(time_ms, fps, model, size_hw) for time_ms, size_hw in zip(times_ms, _SIZES_HW, strict=True)]
        lines.append(f"| {model.engine} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nIn italics: outside the measured sizes.\n"


def _rate(time_ms: float, fps: float, model: Model, size_hw: tuple[int, int]) -> str:
    if time_ms <= 0:
        return "-"
    text = f"{1e3 / time_ms:.3g} / {int(1e3 / time_ms / fps)} / {time_ms * 1e3 / 3600:.3g} h"
    measured = [int(height) * int(width) for height, width in (size.split("x") for size in model.sizes)]
    return text if measured[0] <= size_hw[0] * size_hw[1] <= measured[-1] else f"*{text}*"


def _predictions(models: Sequence[Model], device: Device) -> str:
    limits = device.limits
    lines = [
        f"**Model, not measured: {device.name}**, with {limits.matrix_gflops:g} GFLOP/s and {limits.copy_gb_per_s:g} GB/s, if "
        "it reached the same share of its roofline; ms for the network alone:\n",
        f"| engine | {' | '.join(f'{height}x{width}' for height, width in _SIZES_HW)} |",
        f"| --- |{' ---: |' * len(_SIZES_HW)}",
    ]
    for model in models:
        cells = []
        for height, width in _SIZES_HW:
            least_ms = roofline(refusion_work(model.precision), height * width, 1.0, limits).least_ms
            cells.append("-" if model.roofline_share is None else f"{least_ms / model.roofline_share:.3g}")
        lines.append(f"| {model.engine} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _formula(line: Line | None) -> str:
    if line is None:
        return "-"
    return f"{line.fixed:.3g} {'+' if line.per_megapixel >= 0 else '-'} {abs(line.per_megapixel):.4g} per MP"


def _residual(line: Line | None) -> str:
    return "-" if line is None else f"{line.residual:.1%}"


def _device(text: str) -> Device:
    name, _, rates = text.partition(":")
    gflops, _, copy = rates.partition(":")
    try:
        limits = Limits(float(gflops), float(copy), 0)
    except ValueError:
        limits = Limits(0.0, 0.0, 0)
    if not name or not 0 < limits.matrix_gflops < float("inf") or not 0 < limits.copy_gb_per_s < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME:GFLOPS:GBPS, such as board:200:60")
    return Device(name, limits)


if __name__ == "__main__":
    raise SystemExit(main())
