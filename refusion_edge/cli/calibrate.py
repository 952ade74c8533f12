"""Calibration data for ``build``: a folder of pairs, the table of another bundle, or noise."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refusion_edge.cli.console import BuildProgress
    from refusion_edge.images.pairs import ImagePair, PairPaths
    from refusion_edge.network.quantization import CalibrationTable
    from refusion_edge.tasks import Task

RANDOM = "random"
# One pair in five is held out of the calibration for the accuracy gate, up to this many.
_MAX_GATE_PAIRS = 4


def calibrate(
    options: argparse.Namespace, network: str, shown: BuildProgress
) -> tuple[CalibrationTable, tuple[ImagePair, ...]]:
    """Collect the calibration table of an int8 build.

    Args:
        options: Those of ``build``.
        network: Name of the network that is built.
        shown: Shows the progress.

    Returns:
        The table, and the pairs held out of it for the accuracy gate.

    Raises:
        UsageError: The precision is not int8.
        InputError: There are too few pairs, or one is unusable.
    """
    from refusion_edge.backends.registry import BACKENDS, choose_builder
    from refusion_edge.calibration.int8 import collect, planes_of, random_pairs
    from refusion_edge.errors import UsageError
    from refusion_edge.files import read_file
    from refusion_edge.images.depth import read_pairs
    from refusion_edge.network.checkpoint import read_checkpoint, require_network
    from refusion_edge.network.family import make_model
    from refusion_edge.network.quantization import quantizable_layers, read_table
    from refusion_edge.network.weights import weights_path
    from refusion_edge.tasks import find_task

    if options.precision != "int8":
        raise UsageError(
            f"--calib-data is for --precision int8, and the precision is {options.precision}",
            "leave --calib-data out",
            expected="int8",
            got=options.precision,
        )
    choice = choose_builder(options.backend, "int8", network)  # before minutes are spent on ranges
    task = find_task(options.task)
    weights = options.weights or weights_path(task.name, network)
    checkpoint = read_checkpoint(weights)
    require_network(checkpoint, network, str(weights))
    source = Path(options.calib_data)
    if source.exists() and not source.is_dir():
        text = read_file(source, kind="calibration table", most_bytes=1 << 20)
        return read_table(text, str(source), quantizable_layers(checkpoint.state)), ()
    is_random = options.calib_data == RANDOM and not source.exists()
    calibrating, held_out = ((), ()) if is_random else _split(_find(source, task))
    # Before minutes are spent on ranges, and before the pairs are scaled to one size.
    gate_pairs = tuple(read_pairs(held_out, task))
    for pair in gate_pairs:
        planes_of(pair, task)
    model = make_model(BACKENDS[choice.name].form(network, "int8"), "fp32", checkpoint.state)
    shown.enter("calibration")
    shown.started("pairs", None, len(calibrating))
    done = 0

    def step() -> None:
        nonlocal done
        shown.stepped("pairs", done)
        done += 1

    pairs: Iterator[ImagePair] = random_pairs(task) if is_random else read_pairs(calibrating, task)
    table = collect(model, pairs, task, options.calib_method, random=is_random, on_pair=step)
    shown.finished("pairs")
    return table, gate_pairs


def _find(source: Path, task: Task) -> tuple[PairPaths, ...]:
    from refusion_edge.cli.console import remarks
    from refusion_edge.images.layouts import find_folders
    from refusion_edge.images.pairs import find_pairs

    folders = find_folders(source, task)
    found = find_pairs(str(folders.a), str(folders.b))
    for line in found.remarks():
        remarks().print(line)
    return found.pairs


def _split(pairs: tuple[PairPaths, ...]) -> tuple[tuple[PairPaths, ...], tuple[PairPaths, ...]]:
    """Split into calibration and gate pairs, both spread over the whole folder so that neither is a single scene."""
    from refusion_edge.calibration.int8 import MAX_PAIRS, MIN_PAIRS, check_count, spread

    # The calibration comes first: with few pairs, the gate has the sample pairs alone.
    apart = set(spread(pairs, min(_MAX_GATE_PAIRS, len(pairs) // 5, max(0, len(pairs) - MIN_PAIRS))))
    calibrating = [pair for index, pair in enumerate(pairs) if index not in apart]
    check_count(len(calibrating))
    chosen = tuple(calibrating[index] for index in spread(calibrating, MAX_PAIRS))
    return chosen, tuple(pairs[index] for index in sorted(apart))
