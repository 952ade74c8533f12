"""Everything that a layer over the CUDA driver offers, once, over the libcuda.so.1 that is found, in a process of its own.

python -m tests.cuda.over_libcuda LAYER
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import numpy as np
import pytest

from refusion_edge import cuda
from refusion_edge.cuda.driver import Driver
from refusion_edge.cuda.program import Parameter, pack
from refusion_edge.errors import BackendError
from tests.raising import raises

# What the one kernel of every module of tests/fakes/libcuda.c takes.
COPY = (Parameter("to", "uint8*", written=True), Parameter("from", "uint8*"), Parameter("count", "int32"))


def main(layer: str) -> None:
    # What is not called need not be there.
    sys.setdlopenflags(os.RTLD_LAZY)
    library = ctypes.CDLL("libcuda.so.1")
    with cuda.open_driver(layer) as driver:
        assert str(driver.device) == "Stub 0, compute capability 8.7, driver for CUDA 12.6", driver.device
        assert driver.device.is_zero_copy
        for mapped in (False, True):
            copy_in_a_graph(driver, mapped)
        time_and_refuse(driver)
        failures: list[BaseException] = []
        thread = threading.Thread(target=in_another_thread, args=(driver, library, failures))
        thread.start()
        thread.join()
        assert not failures, failures
    assert library.held_by_callers() == 0, library.held_by_callers()
    assert library.contexts_here() == 0, library.contexts_here()


def copy_in_a_graph(driver: Driver, mapped: bool) -> None:
    """Host to device, device to device by a kernel, device to host, recorded and launched twice."""
    stream = driver.create_stream()
    there, back = (driver.allocate_host(300, mapped=mapped) for _ in range(2))
    assert (there.pointer != 0) == mapped
    first, second = driver.allocate(300), driver.allocate(300)
    function = driver.load(b"\x7fELFcopy_kernel\0", "copy_kernel", 60_000)

    def work() -> None:
        driver.upload(first, there, stream)
        block = pack(COPY, [second, there.pointer if mapped else first, 300], 2)
        driver.launch_kernel(function, (3, 2, 1), 64, 60_000, block, stream)
        driver.download(back, second, stream)

    graph = driver.capture(stream, work)
    for value in (3, 7):
        there.array[:] = np.arange(300) % 251 + value % 5
        driver.launch(graph, stream)
        driver.synchronize(stream)
        assert np.array_equal(back.array, there.array)
    driver.destroy_graph(graph)
    for pointer in (first, second):
        driver.free(pointer)
    for buffer in (there, back):
        driver.free_host(buffer)
    driver.destroy_stream(stream)


def time_and_refuse(driver: Driver) -> None:
    """Events, and what the driver refuses as one of our errors."""
    stream = driver.create_stream()
    events = driver.create_event(), driver.create_event()
    for event in events:
        driver.record(event, stream)
    assert driver.elapsed_ms(*events) == 2.5
    for event in events:
        driver.destroy_event(event)
    driver.destroy_stream(stream)
    for refused, named in (
        (lambda: driver.allocate(1 << 40), "1 MiB free of 1024"),
        (lambda: driver.load(b"no module", "copy_kernel", 0), "cuModuleLoadData"),
        (lambda: driver.load(b"\x7fELFcopy_kernel\0", "other_kernel", 0), "cuModuleGetFunction"),
    ):
        with raises(BackendError, named):
            refused()


def in_another_thread(driver: Driver, library: ctypes.CDLL, failures: list[BaseException]) -> None:
    try:
        with driver.current():
            copy_in_a_graph(driver, mapped=True)
        assert library.contexts_here() == 0
        with pytest.raises(BackendError):
            driver.create_stream()
    except BaseException as error:
        failures.append(error)


if __name__ == "__main__":
    main(sys.argv[1])
