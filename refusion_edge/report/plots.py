"""Plots of reports as inline SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

COLORS = ("#3b6ea8", "#d1772f", "#4b9560", "#b8475d", "#7d68b0", "#8a6a4f", "#c270a6", "#6f7a86", "#a3962f", "#3a9fae")

_WIDTH, _LABEL, _RIGHT = 560, 130, 64
_ROW, _TOP, _BOTTOM = 30, 8, 26
_CURVE_HEIGHT = 200
_TICKS = 5
_MOST_LABELS = 9
_LETTER, _LETTER_HEIGHT = 6.5, 13
# Fraction of the golden ratio: successive points never cluster.
_SPREAD = 0.6180339887


def distribution(values: Mapping[str, NDArray[np.float64]], labels: Mapping[str, str]) -> str:
    """Draw several sets of values as points, quartile boxes and means.

    Args:
        values: Values of each name, NaN where undefined; one row per name, in this order.
        labels: Text next to the row of each name.

    Returns:
        An ``<svg>`` element, or an empty string if nothing is defined.
    """
    defined = {method: row[~np.isnan(row)] for method, row in values.items()}
    everything = np.concatenate(list(defined.values()))
    if not everything.size:
        return ""
    ticks = _ticks(float(everything.min()), float(everything.max()))
    height = _TOP + _ROW * len(values) + _BOTTOM
    parts = [_open(height), _vertical_grid(ticks, height)]
    for index, (method, row) in enumerate(defined.items()):
        middle = _TOP + _ROW * (index + 0.5)
        color = COLORS[index % len(COLORS)]
        parts.append(_text(_LABEL - 10, middle + 4, _shorten(method), "end"))
        if not row.size:
            continue
        x = [_x(value, ticks) for value in row]
        points = "".join(f"M{at:.1f} {middle + (index * _SPREAD % 1 - 0.5) * 16:.1f}h0" for index, at in enumerate(x))
        low, median, high = (_x(float(value), ticks) for value in np.quantile(row, (0.25, 0.5, 0.75)))
        mean = _x(float(row.mean()), ticks)
        parts.append(
            f'<path d="{points}" stroke="{color}" stroke-width="4" stroke-linecap="round" opacity="0.4"/>'
            f'<rect x="{low:.1f}" y="{middle - 8:.1f}" width="{high - low:.1f}" height="16" rx="3" fill="{color}" '
            f'fill-opacity="0.15" stroke="{color}"/>'
            f'<path d="M{median:.1f} {middle - 8:.1f}v16" stroke="{color}" stroke-width="1.5"/>'
            f'<path d="M{mean:.1f} {middle - 5:.1f}l5 5l-5 5l-5 -5z" fill="{color}" stroke="var(--page)"/>'
        )
        parts.append(_text(_WIDTH - _RIGHT + 8, middle + 4, labels[method], "start"))
    return "".join([*parts, "</svg>"])


def curves(positions: Sequence[float], values: Mapping[str, NDArray[np.float64]], *, unit: str) -> str:
    """Draw one curve for each name.

    Args:
        positions: Horizontal positions of the values, ascending.
        values: Values of each name, one per position; NaN where undefined.
        unit: Unit of the positions.

    Returns:
        An ``<svg>`` element, or an empty string if nothing is defined.
    """
    everything = np.concatenate(list(values.values()))
    everything = everything[~np.isnan(everything)]
    if not everything.size:
        return ""
    frame = _Frame(float(min(positions)), float(max(positions)), _ticks(float(everything.min()), float(everything.max())))
    parts = [frame.open()]
    shown = positions if len(positions) <= _MOST_LABELS else positions[:: -(-len(positions) // _MOST_LABELS)]
    parts += [_text(frame.x(position), frame.height - 8, f"{position:.4g} {unit}", "middle") for position in shown]
    for index, (name, row) in enumerate(values.items()):
        color = COLORS[index % len(COLORS)]
        known = [
            (frame.x(position), frame.y(value)) for position, value in zip(positions, row, strict=True) if not math.isnan(value)
        ]
        if not known:
            continue
        line = "L".join(f"{across:.1f} {down:.1f}" for across, down in known)
        dots = "".join(f"M{across:.1f} {down:.1f}h0" for across, down in known)
        parts.append(f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="2"><title>{escape(name)}</title></path>')
        parts.append(f'<path d="{dots}" stroke="{color}" stroke-width="6" stroke-linecap="round"/>')
    return "".join([*parts, "</svg>"])


def bars(values: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> str:
    """Draw one stacked bar per name.

    Args:
        values: Parts of the bar of each name, with their lengths.
        kinds: All kinds of parts; the first has the first of ``COLORS``, and so on.

    Returns:
        An ``<svg>`` element, or an empty string if there is nothing to draw.
    """
    longest = max((sum(parts.values()) for parts in values.values()), default=0.0)
    if not longest:
        return ""
    ticks = _ticks(0.0, longest)
    height = _TOP + _ROW * len(values) + _BOTTOM
    drawn = [_open(height), _vertical_grid(ticks, height)]
    for index, (name, parts) in enumerate(values.items()):
        top = _TOP + _ROW * index + 6
        drawn.append(_text(_LABEL - 10, top + 13, _shorten(name), "end"))
        end = 0.0
        for kind, length in parts.items():
            start, end = end, end + length
            color = COLORS[kinds.index(kind) % len(COLORS)]
            drawn.append(
                f'<rect x="{_x(start, ticks):.1f}" y="{top}" width="{_x(end, ticks) - _x(start, ticks):.1f}" height="18" '
                f'fill="{color}"><title>{escape(kind)} {length:.3g}</title></rect>'
            )
        drawn.append(_text(_x(end, ticks) + 6, top + 13, f"{end:.3g}", "start"))
    return "".join([*drawn, "</svg>"])


def scatter(points: Mapping[str, tuple[float, float]], *, unit: str) -> str:
    """Draw one labeled point per name.

    Args:
        points: Horizontal and vertical position of each name.
        unit: Unit of the horizontal axis.

    Returns:
        An ``<svg>`` element, or an empty string if there are no points.
    """
    if not points:
        return ""
    across = _ticks(0.0, max(x for x, _ in points.values()))
    heights = [y for _, y in points.values()]
    frame = _Frame(across[0], across[-1], _ticks(min(heights), max(heights)))
    drawn = [frame.open()]
    drawn += [_text(frame.x(tick), frame.height - 8, f"{tick:g} {unit}", "middle") for tick in across]
    taken: list[tuple[float, float, float]] = []
    for index, (name, (x, y)) in enumerate(points.items()):
        color = COLORS[index % len(COLORS)]
        drawn.append(f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="5" fill="{color}"/>')
        width = _LETTER * len(name)
        anchor, left = ("end", frame.x(x) - 9 - width) if x > across[-1] / 2 else ("start", frame.x(x) + 9)
        down = frame.y(y) + 4
        # A label that would cover another one moves toward the middle of the plot.
        step = _LETTER_HEIGHT if down < frame.height / 2 else -_LETTER_HEIGHT
        while any(abs(down - other) < _LETTER_HEIGHT and left < end and start < left + width for start, end, other in taken):
            down += step
        taken.append((left, left + width, down))
        drawn.append(_text(left + width if anchor == "end" else left, down, name, anchor))
    return "".join([*drawn, "</svg>"])


class _Frame:
    """Axes of a plot with horizontal grid lines."""

    height = _TOP + _CURVE_HEIGHT + _BOTTOM

    def __init__(self, left: float, right: float, ticks: Sequence[float]) -> None:
        self._left, self._span, self._ticks = left, right - left or 1.0, ticks

    def x(self, position: float) -> float:
        return _LABEL + (position - self._left) / self._span * (_WIDTH - _LABEL - _RIGHT)

    def y(self, value: float) -> float:
        return _TOP + _CURVE_HEIGHT * (1 - (value - self._ticks[0]) / (self._ticks[-1] - self._ticks[0]))

    def open(self) -> str:
        lines = "".join(
            f'<path d="M{_LABEL} {self.y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>'
            + _text(_LABEL - 8, self.y(tick) + 4, f"{tick:g}", "end")
            for tick in self._ticks
        )
        return _open(self.height) + lines


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that span an interval, at least two."""
    if high <= low:
        margin = abs(low) * 0.05 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _x(value: float, ticks: Sequence[float]) -> float:
    return _LABEL + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - _LABEL - _RIGHT)


def _vertical_grid(ticks: Sequence[float], height: int) -> str:
    lines = "".join(f"M{_x(tick, ticks):.1f} {_TOP}V{height - _BOTTOM}" for tick in ticks)
    texts = "".join(_text(_x(tick, ticks), height - 8, f"{tick:g}", "middle") for tick in ticks)
    return f'<path d="{lines}" stroke="var(--line)"/>{texts}'


def _open(height: int) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _shorten(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
