"""Cost of iterating over a stream in Python, compared with feeding an output: processor and wall time per pair.

Both run in turns in one process, on the same synthetic files, with an engine that costs next to nothing.

    python -m benchmarks.iterator_cost --size 480x640 --frames 300 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from benchmarks.mean_engine import MeanEngine
from refusion_edge.fuser import Fuser
from refusion_edge.sizes import parse_size
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.fused_stream import FusedStream, open_stream
from refusion_edge.stream.run.tap import Tap
from refusion_edge.stream.statistics import Statistics
from refusion_edge.tasks import find_task

_HANDED_OVER = 2000


def measured_ms(run: Callable[[FusedStream], int], sources: dict[str, str], **options: str) -> tuple[float, float]:
    """Processor time and wall time of one pair in ms."""
    stream = open_stream(**sources, fuser=Fuser(MeanEngine(), find_task("ir_vis")), **options)
    started = time.perf_counter(), time.process_time()
    count = run(stream)
    return 1000 * (time.process_time() - started[1]) / count, 1000 * (time.perf_counter() - started[0]) / count


def fed(stream: FusedStream) -> int:
    """Feed the outputs only."""
    stream.run()
    report = stream.report()
    assert report is not None
    return int(report["pairs"]["shown"])


def iterated(stream: FusedStream) -> int:
    """Iterate over the frames."""
    return sum(1 for _ in stream)


def handed_over_ms(size_hw: tuple[int, int], *, shared: bool) -> float:
    """Processor time in ms of handing over one frame, with the copy that other outputs make necessary or without."""
    image = np.zeros((*size_hw, 3), np.uint8)
    frame = FusedFrame(image, np.zeros(size_hw, np.float32), np.ones_like(image), 0, 0, 0, "fused")
    tap = Tap()
    tap.attach(Statistics(), live=False, shared=shared)
    started = time.process_time()
    for _ in range(_HANDED_OVER):
        tap.put(frame)
        tap.get()
    return 1000 * (time.process_time() - started) / _HANDED_OVER


def main() -> None:
    """Measure both ways in turns, and print the medians and the median of their differences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=parse_size, default=(480, 640), help="height x width (default: 480x640)")
    parser.add_argument("--frames", type=int, default=300, help="pairs of a run (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way (default: 5)")
    options = parser.parse_args()
    height, width = options.size
    sources = {
        side: f"test://{side}?width={width}&height={height}&live=0&frames={options.frames}" for side in ("ir", "vis")
    }  # fmt: skip
    for shared in (False, True):
        print(json.dumps({"handed_over_ms": round(handed_over_ms(options.size, shared=shared), 4), "copied": shared}))
    rows = []
    for _ in range(options.rounds):
        rows.append((*measured_ms(fed, sources, outputs="null://"), *measured_ms(iterated, sources)))
    times = np.array(rows)
    output, loop = times[:, :2], times[:, 2:]
    for number, kind in enumerate(("processor", "wall")):
        print(json.dumps({
            "time": kind, "output_ms": round(float(np.median(output[:, number])), 3),
            "iterated_ms": round(float(np.median(loop[:, number])), 3),
            "difference_ms": round(float(np.median(loop[:, number] - output[:, number])), 3),
        }))  # fmt: skip


if __name__ == "__main__":
    main()
