"""Fusing the sources of an evaluation with engines of ours before they are scored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refusion_edge.errors import InputError
from refusion_edge.evaluation.scoring import Sweep, defined_or_nan
from refusion_edge.fuser import Fuser
from refusion_edge.images.io import write_image
from refusion_edge.images.pairs import ImagePair, PairPaths, read_pair
from refusion_edge.metrics import Metric, sweep_fusion


def fuse_pairs(fuser: Fuser, pairs: Sequence[PairPaths], folder: Path, *, colour: bool, done: Callable[[], None]) -> None:
    """Fuse pairs into PNG files with their names.

    Args:
        fuser: An open fuser.
        pairs: Pairs to fuse.
        folder: Where to write; made if needed.
        colour: Whether to keep the colour of the sources.
        done: Called after each pair.

    Raises:
        InputError: A pair cannot be fused; the message names it.
        OutputError: The folder cannot be written.
    """
    for paths in pairs:
        pair = read_pair(paths)
        try:
            fused = fuser.fuse(pair.a, pair.b, colour=colour)
        except InputError as error:
            raise type(error)(f"pair {pair.name}: {error}") from error
        write_image(folder / f"{paths.name}.png", fused)
        done()


def sweep_fuser(
    fuser: Fuser, pairs: Sequence[PairPaths], metrics: Sequence[Metric], misregistration: Sweep, done: Callable[[], None]
) -> NDArray[np.float64]:
    """Fuse with a displaced source a and score against the aligned sources, see ``refusion_edge.metrics.sweep_fusion``.

    Args:
        fuser: An open fuser.
        pairs: Pairs to fuse.
        metrics: What to compute.
        misregistration: Offsets to try.
        done: Called after each pair.

    Returns:
        (pairs, offsets, metrics); NaN where a metric is undefined.

    Raises:
        InputError: A pair cannot be fused; the message names it.
        UsageError: An offset is too large for a picture.
    """
    rows = []
    for paths in pairs:
        pair = read_pair(paths)
        try:
            rows.append(_sweep_pair(fuser, pair, metrics, misregistration))
        except InputError as error:
            raise type(error)(f"pair {pair.name}: {error}") from error
        done()
    return np.stack(rows)


def _sweep_pair(fuser: Fuser, pair: ImagePair, metrics: Sequence[Metric], sweep: Sweep) -> NDArray[np.float64]:
    values: dict[Metric, list[float]] = {}
    for colour in (False, True):
        wanted = [metric for metric in metrics if (metric.convention == "vifb") == colour]
        if not wanted:
            continue
        fuse = functools.partial(fuser.fuse, colour=colour)
        sensor_a = fuser.task.ranged_a
        points = sweep_fusion(pair.a, pair.b, fuse, wanted, sweep.offsets_px, sweep.kind, sensor_a=sensor_a)
        for metric in wanted:
            values[metric] = [defined_or_nan(point[metric]) for point in points]
    return np.array([values[metric] for metric in metrics]).T
