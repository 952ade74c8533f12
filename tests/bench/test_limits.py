"""Limits of processor and device, and the roofline; the device is a simulated one of known rates."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.arrays import State
from refusion_edge.bench.limits import Limits, copy_kernel, matrix_kernel, measure_device_limits, measure_limits, roofline
from refusion_edge.cuda.driver import Device
from refusion_edge.cuda.program import Parameter, unpack
from refusion_edge.errors import BackendError
from refusion_edge.kernels.gpu.simulated_device import SimulatedDevice
from refusion_edge.network.cost import Work, refusion_work
from tests.raising import raises

# Operations of one instruction mma.m16n8k16, and how often the loop of the kernel names it.
PRODUCT_FLOPS = 4096
KERNELS = {"matrix_rate": matrix_kernel, "copy_rate": copy_kernel}
PARAMETERS = {
    "matrix_rate": (Parameter("target", "float32*"), Parameter("rounds", "int32")),
    "copy_rate": (Parameter("target", "uint8*"), Parameter("source", "uint8*")),
}


def test_operations_are_those_that_torch_counts_in_the_official_sequence(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="counting needs torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.official_layout import official_fuse

    parameters = {name: torch.from_numpy(array) for name, array in random_state.items()}
    planes = [torch.rand(1, 1, 13, 17) for _ in range(2)]
    with FlopCounterMode(display=False) as counter:
        official_fuse(parameters, *planes)
    assert counter.get_total_flops() == refusion_work("fp32").flops * 13 * 17


def test_least_traffic_is_the_features_at_the_five_sums() -> None:
    # Written and read at 5 points, 32 channels of both sources together, and three planes.
    assert refusion_work("fp32").least_bytes == 5 * 2 * 32 * 4 + 3 * 4
    assert refusion_work("fp16").least_bytes == 5 * 2 * 32 * 2 + 3 * 4
    assert refusion_work("fp16").flops == refusion_work("fp32").flops


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


class RatedDriver(SimulatedDevice):
    """A device that multiplies and copies at given rates, and starts kernels in 10 us.

    Args:
        flops_per_s: Rate of products.
        bytes_per_s: Rate of copies.
        architecture: What it pretends to be.
        total: Bytes of memory that it pretends to have.
    """

    def __init__(self, flops_per_s: float, bytes_per_s: float, *, architecture: int = 87, total: int = 1 << 40) -> None:
        super().__init__(
            Device(
                "a board", f"{architecture // 10}.{architecture % 10}", integrated=True, maps_host_memory=True, driver="12.6"
            ),
            total=total,
        )
        self._rates = flops_per_s, bytes_per_s
        self._names: list[str] = []
        self._now_ms = 0.0
        self._times_ms: dict[int, float] = {}

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        assert image == KERNELS[symbol]().encode() + b"\0"
        assert shared_bytes == 0
        self._names.append(symbol)
        return len(self._names)

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        self._check_stream(stream)
        name, count = self._names[function - 1], grid[0] * threads
        target, other = unpack(PARAMETERS[name], arguments, 0)
        self._now_ms += 0.01
        if name == "matrix_rate":
            self.view(target, 4 * count)[:] = 0
            flops = count // 32 * other * matrix_kernel().count("mma.sync") * PRODUCT_FLOPS
            self._now_ms += 1e3 * flops / self._rates[0]
        else:
            np.copyto(self.view(target, 16 * count), self.view(other, 16 * count))
            self._now_ms += 1e3 * 2 * 16 * count / self._rates[1]

    def record(self, event: int, stream: int) -> None:
        super().record(event, stream)
        self._times_ms[event] = self._now_ms

    def elapsed_ms(self, first: int, last: int) -> float:
        return self._times_ms[last] - self._times_ms[first]


@pytest.mark.parametrize(("flops_per_s", "bytes_per_s"), [(1.7e13, 1.02e11), (7e14, 4.8e12)])
def test_the_rates_of_a_known_device_are_found(flops_per_s: float, bytes_per_s: float) -> None:
    with RatedDriver(flops_per_s, bytes_per_s) as driver:
        found = measure_device_limits(driver)
    assert found is not None
    assert found.device == "a board"
    # What starting a kernel costs must not count.
    assert found.matrix_gflops == pytest.approx(flops_per_s / 1e9, rel=1e-3)
    assert found.copy_gb_per_s == pytest.approx(bytes_per_s / 1e9, rel=0.1)


def test_a_device_without_the_product_is_not_measured() -> None:
    with RatedDriver(1e13, 1e11, architecture=72) as driver:
        assert measure_device_limits(driver) is None
        assert driver.calls == []


def test_too_little_memory_is_an_error_that_leaves_nothing_behind() -> None:
    with RatedDriver(1e13, 1e11, total=300 << 20) as driver:
        with raises(BackendError, expected=256 << 20, got=44 << 20):
            measure_device_limits(driver)
        assert driver.held == ""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_87", "sm_90"])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_the_assembler_takes_the_kernels(name: str, architecture: str, tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="the assembler comes with Triton")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    (tmp_path / "k.ptx").write_text(KERNELS[name]())
    found = subprocess.run(
        [tools / "ptxas", "-v", f"-arch={architecture}", tmp_path / "k.ptx", "-o", tmp_path / "k.cubin"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert re.search(r"\b0 bytes spill stores", found.stderr)
    code = subprocess.run(
        [tools / "nvdisasm", "-c", tmp_path / "k.cubin"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    # No product of the loop, which is unrolled, may be optimised away, or the rate would be too high.
    products, written = code.count("HMMA.16816.F32"), KERNELS[name]().count("mma.sync")
    assert (products >= written and products % written == 0) if written else products == 0
