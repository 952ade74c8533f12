"""Arithmetic and traffic of the network, and how near a time comes to the limits."""

from __future__ import annotations

import pytest

from refusion_edge.arrays import State
from refusion_edge.bench.limits import Limits, measure_limits, roofline
from refusion_edge.network.cost import Work, work_per_pixel


def test_operations_are_those_that_torch_counts_in_the_official_sequence(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="counting needs torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.official_layout import official_fuse

    parameters = {name: torch.from_numpy(array) for name, array in random_state.items()}
    planes = [torch.rand(1, 1, 13, 17) for _ in range(2)]
    with FlopCounterMode(display=False) as counter:
        official_fuse(parameters, *planes)
    assert counter.get_total_flops() == work_per_pixel("fp32").flops * 13 * 17


def test_least_traffic_is_the_features_at_the_five_sums() -> None:
    # Written and read at 5 points, 32 channels of both sources together, and three planes.
    assert work_per_pixel("fp32").least_bytes == 5 * 2 * 32 * 4 + 3 * 4
    assert work_per_pixel("fp16").least_bytes == 5 * 2 * 32 * 2 + 3 * 4
    assert work_per_pixel("fp16").flops == work_per_pixel("fp32").flops


@pytest.mark.parametrize(("copy_gb_per_s", "bound", "least_ms"), [(100.0, "arithmetic", 1.0), (0.5, "memory", 2.0)])
def test_the_longer_of_the_two_binds(copy_gb_per_s: float, bound: str, least_ms: float) -> None:
    found = roofline(Work(flops=1e5, least_bytes=1e3), 1000, 4.0, Limits(100.0, copy_gb_per_s, 1))
    assert (found.bound, found.least_ms, found.share) == (bound, pytest.approx(least_ms), pytest.approx(least_ms / 4))
    assert (found.gflops, found.least_traffic_gb_per_s) == (pytest.approx(25), pytest.approx(0.25))


def test_limits_of_this_machine_are_measured() -> None:
    found = measure_limits()
    assert found.matrix_gflops > 0.01
    assert found.copy_gb_per_s > 0.01
    assert found.cores >= 1
