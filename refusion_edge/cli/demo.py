"""``demo``: fuse the sample pairs that ship with the package, and show the sources next to the results."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from refusion_edge.cli.options import add_network, add_threads

SUMMARY = "fuse the bundled sample pairs and write a montage of sources and results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="folder to write to (default: demo)"
    )
    parser.add_argument(
        "--bundle", metavar="DIR", help="engine bundle for the pairs of its task (default: the bundled weights in fp32)"
    )
    parser.add_argument(
        "--backend", default="auto", metavar="NAME",
        help="back end for the bundled weights, see 'doctor'; all runs every usable one in turn (default: auto)",
    )  # fmt: skip
    add_network(parser)
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    """Fuse, write every result and the montage, and print where they are."""
    from refusion_edge.backends.registry import usable_runners
    from refusion_edge.bundle.folder import read_bundle
    from refusion_edge.cli.console import output, plain_table, progress_bar
    from refusion_edge.fuser import load
    from refusion_edge.images.io import write_image
    from refusion_edge.images.montage import MontageRow, montage
    from refusion_edge.images.pairs import read_pair
    from refusion_edge.images.samples import sample_paths
    from refusion_edge.network.family import DEFAULT_NETWORK
    from refusion_edge.network.weights import shipped_tasks
    from refusion_edge.tasks import TASKS

    network = options.network or DEFAULT_NETWORK
    shipped = shipped_tasks(network)
    bundled_task = read_bundle(options.bundle).manifest.task if options.bundle else None
    backends = usable_runners(network) if options.backend == "all" else (options.backend,)
    rows: list[MontageRow] = []
    table = plain_table("task", "pair", "size", "engine", "back end", "load (s)", "fuse (s)")
    with progress_bar() as progress:
        jobs = [
            (task, options.bundle if task.name == bundled_task else task.name, backend)
            for task in TASKS.values()
            if task.name in shipped or task.name == bundled_task
            # A bundle runs on the back end that it was built for.
            for backend in (("auto",) if task.name == bundled_task else backends)
        ]
        for task, source, backend in progress.track(jobs, description="fusing"):
            started = time.perf_counter()
            of_network = options.network if source == options.bundle else network
            with load(source, backend=backend, threads=options.threads, network=of_network) as fuser:
                loaded_s = time.perf_counter() - started
                for paths in sample_paths(task.name):
                    pair = read_pair(paths)
                    started = time.perf_counter()
                    fused = fuser.fuse(pair.a, pair.b)
                    fused_s = time.perf_counter() - started
                    several = f"-{backend}" if len(backends) > 1 and source != options.bundle else ""
                    path = options.output / "fused" / f"{task.name}-{pair.name}{several}.png"
                    write_image(path, fused)
                    size = f"{fused.shape[1]}x{fused.shape[0]}"
                    engine, name = "bundle" if source == options.bundle else "fp32", fuser.backend.name
                    table.add_row(task.name, pair.name, size, engine, name, f"{loaded_s:.2f}", f"{fused_s:.2f}")
                    if backend in ("auto", backends[0]):
                        captions = (task.description_a, task.description_b, f"fused ({task.name})")
                        rows.append(MontageRow((pair.a, pair.b, fused), captions))
    sheet = options.output / "montage.png"
    write_image(sheet, montage(rows))
    console = output()
    console.print(table)
    console.print(f"Fused:   {options.output / 'fused'}")
    console.print(f"Montage: {sheet}")
    bundle = f" --bundle {options.bundle}" if options.bundle else ""
    console.print(f"Next:    refusion-edge fuse INFRARED.png VISIBLE.png -o fused.png{bundle}")
    return 0
