"""Average the fusion weights of several runs; the mean is often better than each of them.

python -m examples.mean_weights FILE FILE [FILE ...] -o mean.safetensors

The files are weights or checkpoints of one task; runs that start from the same weights stay close enough to each other for
their mean to be useful (Wortsman et al., Model soups, ICML 2022).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from refusion_edge.errors import RefusionError, UsageError
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors


def main() -> int:
    """Average and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    options = parser.parse_args()
    write_safetensors(options.output, mean_weights(options.files))
    print(f"wrote the mean of {len(options.files)} files to {options.output}")
    return 0


def mean_weights(paths: list[Path]) -> Checkpoint:
    """Average weights in float64.

    Raises:
        UsageError: The files are of different tasks.
        CheckpointError: A file cannot be used.
    """
    found = [read_checkpoint(path) for path in paths]
    tasks = {one.task for one in found if one.task is not None}
    if len(tasks) > 1:
        raise UsageError(f"the weights are for different tasks ({', '.join(sorted(tasks))})", "average weights of one task")
    means = {
        name: np.mean([one.state[name] for one in found], axis=0, dtype=np.float64).astype(np.float32)
        for name in found[0].state
    }
    return Checkpoint(next(iter(tasks), None), means, {"mean of": ", ".join(path.name for path in paths)})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RefusionError as error:
        sys.exit(f"mean_weights: error: {error}")
