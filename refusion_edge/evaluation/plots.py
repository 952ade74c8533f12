"""Plots of an evaluation as inline SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#3b6ea8", "#d1772f", "#4b9560", "#b8475d", "#7d68b0", "#8a6a4f", "#c270a6", "#6f7a86", "#a3962f", "#3a9fae")

_WIDTH, _LABEL, _RIGHT = 560, 130, 64
_ROW, _TOP, _BOTTOM = 30, 8, 26
_CURVE_HEIGHT = 200
_TICKS = 5
# Fraction of the golden ratio: successive points never cluster.
_SPREAD = 0.6180339887


def distribution(values: Mapping[str, NDArray[np.float64]], labels: Mapping[str, str]) -> str:
    """Draw the values per image of several methods as points, quartile boxes and means.

    Args:
        values: Method to its values, NaN where undefined; one row for each method, in this order.
        labels: Method to the text of its mean.

    Returns:
        An ``<svg>`` element, or an empty text if nothing is defined.
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
        colour = COLOURS[index % len(COLOURS)]
        parts.append(_text(_LABEL - 10, middle + 4, _shorten(method), "end"))
        if not row.size:
            continue
        x = [_x(value, ticks) for value in row]
        points = "".join(f"M{at:.1f} {middle + (index * _SPREAD % 1 - 0.5) * 16:.1f}h0" for index, at in enumerate(x))
        low, median, high = (_x(float(value), ticks) for value in np.quantile(row, (0.25, 0.5, 0.75)))
        mean = _x(float(row.mean()), ticks)
        parts.append(
            f'<path d="{points}" stroke="{colour}" stroke-width="4" stroke-linecap="round" opacity="0.4"/>'
            f'<rect x="{low:.1f}" y="{middle - 8:.1f}" width="{high - low:.1f}" height="16" rx="3" fill="{colour}" '
            f'fill-opacity="0.15" stroke="{colour}"/>'
            f'<path d="M{median:.1f} {middle - 8:.1f}v16" stroke="{colour}" stroke-width="1.5"/>'
            f'<path d="M{mean:.1f} {middle - 5:.1f}l5 5l-5 5l-5 -5z" fill="{colour}" stroke="var(--page)"/>'
        )
        parts.append(_text(_WIDTH - _RIGHT + 8, middle + 4, labels[method], "start"))
    return "".join([*parts, "</svg>"])


def curves(offsets: Sequence[float], values: Mapping[str, NDArray[np.float64]]) -> str:
    """Draw means against misregistration, one curve for each method.

    Args:
        offsets: Offsets in pixels, ascending.
        values: Method to its means, one for each offset; NaN where undefined.

    Returns:
        An ``<svg>`` element, or an empty text if nothing is defined.
    """
    everything = np.concatenate(list(values.values()))
    everything = everything[~np.isnan(everything)]
    if not everything.size:
        return ""
    ticks = _ticks(float(everything.min()), float(everything.max()))
    height = _TOP + _CURVE_HEIGHT + _BOTTOM
    span = max(offsets) - min(offsets) or 1.0

    def x(offset: float) -> float:
        return _LABEL + (offset - min(offsets)) / span * (_WIDTH - _LABEL - _RIGHT)

    def y(value: float) -> float:
        return _TOP + _CURVE_HEIGHT * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0]))

    parts = [_open(height)]
    for tick in ticks:
        parts.append(f'<path d="M{_LABEL} {y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>')
        parts.append(_text(_LABEL - 8, y(tick) + 4, f"{tick:g}", "end"))
    parts += [_text(x(offset), height - 8, f"{offset:g} px", "middle") for offset in offsets]
    for index, (method, row) in enumerate(values.items()):
        colour = COLOURS[index % len(COLOURS)]
        known = [(x(offset), y(value)) for offset, value in zip(offsets, row, strict=True) if not math.isnan(value)]
        if not known:
            continue
        line = "L".join(f"{across:.1f} {down:.1f}" for across, down in known)
        dots = "".join(f"M{across:.1f} {down:.1f}h0" for across, down in known)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"><title>{escape(method)}</title></path>')
        parts.append(f'<path d="{dots}" stroke="{colour}" stroke-width="6" stroke-linecap="round"/>')
    return "".join([*parts, "</svg>"])


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


def _shorten(method: str, limit: int = 18) -> str:
    return method if len(method) <= limit else method[: limit - 1] + "…"
