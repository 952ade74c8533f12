"""``demo``: fuse the sample pairs that ship with the package, and show the sources next to the results."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.cli.options import add_network, add_overwrite, add_threads, add_trust_engine, require_free
from refusion_edge.network import NETWORK_NAMES

if TYPE_CHECKING:
    from refusion_edge.arrays import Uint8Array
    from refusion_edge.images.montage import MontageRow

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
    add_network(parser, default="both")
    add_trust_engine(parser)
    add_threads(parser)
    add_overwrite(parser)


def run(options: argparse.Namespace) -> int:
    """Fuse with every network, write every result and the montage, and print where they are."""
    from refusion_edge.bundle.folder import read_bundle
    from refusion_edge.cli.console import output, plain_table, progress_bar
    from refusion_edge.images.io import write_image
    from refusion_edge.images.montage import montage
    from refusion_edge.network.family import NETWORKS
    from refusion_edge.tasks import TASKS

    sheet = options.output / "montage.png"
    require_free(
        sheet, *(options.output / "fused").glob("*.png"), overwrite=options.overwrite, instead="choose another --output"
    )
    spec = read_bundle(options.bundle).manifest if options.bundle else None
    networks = tuple(NETWORKS) if options.network is None else (options.network,)
    jobs = [
        job
        for task in TASKS
        for network in networks
        for job in _jobs(options, task, network, None if spec is None else (spec.task, spec.spec.network))
    ]
    shown: dict[tuple[str, str], dict[str, Uint8Array]] = {}
    table = plain_table("task", "pair", "size", "network", "engine", "back end", "load (s)", "fuse (s)")
    with progress_bar() as progress:
        for job in progress.track(jobs, description="fusing"):
            for name, fused, cells in _fuse(options, job):
                several = f"-{job.backend}" if job.several else ""
                of_network = "" if job.network == NETWORK_NAMES[0] else f"-{job.network}"
                write_image(options.output / "fused" / f"{job.task}-{name}{of_network}{several}.png", fused)
                table.add_row(job.task, name, *cells)
                shown.setdefault((job.task, name), {}).setdefault(job.network, fused)
    write_image(sheet, montage(_rows(shown, networks)))
    console = output()
    console.print(table)
    console.print(f"Fused:   {options.output / 'fused'}")
    console.print(f"Montage: {sheet}")
    bundle = f" --bundle {options.bundle}" if options.bundle else ""
    console.print(f"Next:    refusion-edge fuse INFRARED.png VISIBLE.png -o fused.png{bundle}")
    return 0


@dataclass(frozen=True, slots=True)
class _Job:
    """The pairs of one task, one network and one back end.

    Attributes:
        task: Name of the task.
        network: Name of the network.
        source: The task, or the folder of the bundle.
        backend: Back end, or ``auto``.
        several: Whether other back ends fuse the same pairs.
    """

    task: str
    network: str
    source: str
    backend: str
    several: bool = False


def _jobs(options: argparse.Namespace, task: str, network: str, bundled: tuple[str, str] | None) -> Iterator[_Job]:
    from refusion_edge.backends.registry import usable_runners
    from refusion_edge.network.weights import shipped_tasks

    if bundled is not None and bundled[0] == task and (bundled[1] == network or options.network is not None):
        # A bundle runs on the back end that it was built for; one of another network than asked for is refused when loaded.
        yield _Job(task, network, options.bundle, "auto")
    elif task in shipped_tasks(network):
        backends = usable_runners(network) if options.backend == "all" else (options.backend,)
        for backend in backends:
            yield _Job(task, network, task, backend, several=len(backends) > 1)


def _fuse(options: argparse.Namespace, job: _Job) -> Iterator[tuple[str, Uint8Array, list[str]]]:
    """Fuse the pairs of a job; yields their names, the results, and what the table says of them."""
    from refusion_edge.fuser import load
    from refusion_edge.images.pairs import read_pair
    from refusion_edge.images.samples import sample_paths

    started = time.perf_counter()
    with load(job.source, backend=job.backend, threads=options.threads, network=job.network) as fuser:
        loaded_s = time.perf_counter() - started
        for paths in sample_paths(job.task):
            pair = read_pair(paths)
            started = time.perf_counter()
            fused = fuser.fuse(pair.a, pair.b)
            fused_s = time.perf_counter() - started
            size, engine = f"{fused.shape[0]}x{fused.shape[1]}", "fp32" if job.source == job.task else "bundle"
            yield pair.name, fused, [size, job.network, engine, fuser.backend.name, f"{loaded_s:.2f}", f"{fused_s:.3f}"]


def _rows(shown: Mapping[tuple[str, str], Mapping[str, Uint8Array]], networks: Sequence[str]) -> list[MontageRow]:
    """One row for each pair: its sources, and the result of every network that has weights for its task."""
    from refusion_edge.images.montage import MontageRow
    from refusion_edge.images.pairs import read_pair
    from refusion_edge.images.samples import sample_paths
    from refusion_edge.tasks import TASKS

    rows = []
    for (name, pair_name), results in shown.items():
        task, pair = TASKS[name], read_pair(next(paths for paths in sample_paths(name) if paths.name == pair_name))
        fused = [results.get(network) for network in networks]
        said = [
            f"fused by {network} ({name})" if network in results else f"no weights of {network} for {name}"
            for network in networks
        ]
        rows.append(MontageRow((pair.a, pair.b, *fused), (task.description_a, task.description_b, *said)))
    return rows
