"""Several rigs in one process: fused frames per second and processor time per pair of each, with synthetic cameras.

Run as ``python -m benchmarks.stream_site`` from the repository's root, with the native module built, on an idle machine.
Goal on two cores: two rigs of 480x640 at 15 frames per second with ``fast``, and no skipped pairs. On a busy machine, the
processor time still shows whether they would fit: all rigs together can use the time of all cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from refusion_edge.machine import keep_freed_memory, processor, usable_cores
from refusion_edge.stream.site import Site, read_site

LEAST_SHARE = 0.98
_WARM_UP_S = 2.0


def main() -> int:
    """Print figures; returns 1 if a rig does not hold its rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rigs", type=int, default=2, help="number of rigs (default: 2)")
    parser.add_argument("--rate", type=float, default=15.0, help="frames per second of their cameras (default: 15)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the run after the warm-up (default: 20)")
    parser.add_argument("--network", default="fast", help="network (default: fast)")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    found = _run(options.rigs, options.rate, options.seconds, options.network)
    print(f"{processor()}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}; {options.network}, 640x480")
    for rig, figures in found["rigs"].items():
        print(
            f"{rig}: {figures['rate_hz']:.2f} fused frames per second of {options.rate:g}; pairs not shown {figures['drops']}"
        )
    per_pair_ms, cores = 1000 * found["cpu_s"] / found["pairs"], usable_cores()
    room_ms = 1000 * cores / (options.rigs * options.rate)
    print(
        f"processor time per pair, drawing of the synthetic cameras included: {per_pair_ms:.1f} ms; room for {room_ms:.1f} ms"
    )
    return int(any(figures["rate_hz"] < LEAST_SHARE * options.rate for figures in found["rigs"].values()))


def _run(rigs: int, rate_hz: float, seconds: float, network: str) -> dict[str, Any]:
    def camera(side: str, rig: int) -> str:
        return f"test://{side}?width=640&height=480&rate={rate_hz:g}&scene=texture&pan=20&seed={rig}"

    document = {
        "network": network,
        "backend": "native",
        "outputs": ["null://"],
        "rigs": {f"rig-{rig}": {"ir": camera("ir", rig), "vis": camera("vis", rig)} for rig in range(rigs)},
    }
    with tempfile.TemporaryDirectory(prefix="site-") as folder:
        path = Path(folder, "site.yaml")
        path.write_text(yaml.safe_dump(document))
        site = Site(read_site(path))
    running = threading.Thread(target=site.run)
    running.start()
    try:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and not all(_shown(site).values()):
            time.sleep(0.1)
        time.sleep(_WARM_UP_S)
        before, cpu_s, started_s = _shown(site), time.process_time(), time.monotonic()
        time.sleep(seconds)
        after, cpu_s, took_s = _shown(site), time.process_time() - cpu_s, time.monotonic() - started_s
    finally:
        site.stop()
        running.join()
    reports = {rig: each["report"] for rig, each in site.report()["rigs"].items()}
    return {
        "cpu_s": cpu_s,
        "pairs": sum(after.values()) - sum(before.values()),
        "rigs": {
            rig: {"rate_hz": (after[rig] - before[rig]) / took_s, "drops": report["pairs"]["drops"]}
            for rig, report in reports.items()
        },
    }


def _shown(site: Site) -> dict[str, int]:
    rigs = site.report()["rigs"]
    return {rig: 0 if each["report"] is None else each["report"]["pairs"]["shown"] for rig, each in rigs.items()}


if __name__ == "__main__":
    raise SystemExit(main())
