"""Running a plan: one context, its buffers, one stream, and a CUDA graph where TensorRT can be captured."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar, NamedTuple

import numpy as np
from typing_extensions import Self

from refusion_edge import cuda
from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.backends.registry import Engine, RunOptions
from refusion_edge.backends.tensorrt.product import TENSORRT, TENSORRT_RTX, Product, explain, load, open_log
from refusion_edge.cuda.driver import Driver, HostBuffer, memory_text, on_its_device, out_of_memory
from refusion_edge.cuda.timing import StagesOnDevice, StageTimer
from refusion_edge.errors import BackendError, ShapeError, not_finite
from refusion_edge.network.graph import INPUT_A, INPUT_B, MEAN, OUTPUT, UINT8_INPUTS, UINT8_OUTPUTS
from refusion_edge.sizes import SizeRange

_SOURCES = (INPUT_A, INPUT_B)


class _Way(NamedTuple):
    """The inputs and outputs used in a run; each combination has a CUDA graph of its own."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class PlanRunner(StagesOnDevice):
    """Runs a plan of one product. Implements ``Backend``; the two subclasses below are what the table of back ends names.

    On a discrete GPU, planes are copied through page-locked memory. On an integrated GPU, which shares the CPU's memory, the
    engine reads and writes page-locked memory in place.

    Attributes:
        device: The device.
        sizes_hw: The sizes that the plan accepts.
        graph_problem: Why runs are not replayed from a captured CUDA graph; empty if they are.
        takes_uint8: Whether the plan also accepts uint8 sources; see ``refusion_edge.backends.registry.Uint8InputBackend``.
        uint8_range: Range of the plan's uint8 output, ``stretch`` or ``fixed``; None without one.

    Args:
        plan: Content of the plan; not kept.
        driver: The device, or None to open one; closed together with the engine.
        built_for: Compute capabilities that the plan was built for, to explain why it does not load.
        version_compatible: Whether the plan contains a runtime of its own, which is code that will be executed.
        remedy: What to do about a plan that does not load, without a full stop.

    Raises:
        BackendError: There is no device, no driver layer, or too little memory.
        MisfitError: The plan does not load on this machine; the message says why.
        MissingDependencyError: TensorRT is not installed.
    """

    name: str
    product: ClassVar[Product]

    @classmethod
    def open_engine(cls, engine: Engine, _options: RunOptions) -> Self:
        """Run the plan of a bundle."""
        return cls(
            engine.data,
            built_for=engine.compute_capabilities,
            version_compatible=engine.version_compatible,
            remedy=engine.remedy,
        )

    def __init__(
        self,
        plan: bytes,
        *,
        driver: Driver | None = None,
        built_for: tuple[str, ...] = (),
        version_compatible: bool = False,
        remedy: str = "build it again on this machine",
    ) -> None:
        trt = load(self.product)
        # Released in reverse order: graph, buffers, context, engine, stream, device.
        with contextlib.ExitStack() as owned:
            self._driver = owned.enter_context(driver or cuda.open_driver())
            self.device = self._driver.device
            self._stream = self._driver.create_stream()
            owned.callback(self._driver.destroy_stream, self._stream)
            self._timer = StageTimer(self._driver, self._stream)
            owned.callback(self._timer.close)
            self._log = open_log(trt)
            runtime = trt.Runtime(self._log.sink)
            if version_compatible:
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                if self._log.says_no_memory:
                    raise out_of_memory(len(plan), *self._driver.memory())
                raise explain(
                    trt, runtime, plan, product=self.product, device=self.device, built_for=built_for, log=self._log,
                    remedy=remedy,
                )  # fmt: skip
            self._trt, self._runtime, self._engine = trt, runtime, engine
            owned.callback(self._drop_engine)
            self._check_tensors()
            self.sizes_hw = self._read_sizes()
            # Scratch memory is allocated for the size in use, rather than for the maximum of the plan.
            self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if self._context is None:
                raise BackendError(
                    f"{self.product.title} cannot create a context on {self.device}: {self._log.first_error}, with "
                    f"{memory_text(*self._driver.memory())}",
                    "close other programs, or build for a smaller --size",
                )
            owned.callback(self._drop_context)
            self._size_hw: tuple[int, int] | None = None
            self._graphs: dict[_Way, Any] = {}
            self.graph_problem = ""
            self._sized = owned.enter_context(contextlib.ExitStack())
            self._owned = owned.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._owned.close()

    def fuse(self, a: Float32Array | Uint8Array, b: Float32Array | Uint8Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse`` and ``Uint8InputBackend``. The result is a new array."""
        self._run(a, b, (OUTPUT,))
        # A copy, because the page-locked memory is freed with the engine or for the next size.
        return self._view(OUTPUT, np.float32).reshape(a.shape).copy()

    def fuse_uint8(self, a: Float32Array | Uint8Array, b: Float32Array | Uint8Array) -> Uint8Array:
        """Fuse two luma planes to uint8 on the device; see ``Uint8OutputBackend.fuse_uint8``."""
        if self.uint8_range is None:
            raise BackendError("the engine has no uint8 output", "build it with --uint8-output stretch")
        levels = UINT8_OUTPUTS[self.uint8_range]
        self._run(a, b, (levels, MEAN))
        if not np.isfinite(self._view(MEAN, np.float32)).all():
            raise not_finite(self.name)
        return self._view(levels, np.uint8).reshape(a.shape[2:]).copy()

    def _prepare_anew(self) -> None:
        self._size_hw = None

    @on_its_device
    def _run(self, a: Array, b: Array, wanted: tuple[str, ...]) -> None:
        """Run the engine and fetch the wanted outputs."""
        height, width = a.shape[2:]
        if (height, width) != self._size_hw:
            self._prepare((height, width))
        way = _Way(tuple(self._give(source, plane) for source, plane in zip(_SOURCES, (a, b), strict=True)), wanted)
        graph = self._graphs.get(way)
        if graph is None:
            self._start(way)
        else:
            self._driver.launch(graph, self._stream)
        self._driver.synchronize(self._stream)
        if graph is None and not self.graph_problem:
            # Captured after a first run, whose setup in TensorRT cannot be captured.
            self._record(way)

    def _give(self, source: str, plane: Array) -> str:
        """Copy a source into the input for its dtype, and return the name of that input."""
        is_levels = plane.dtype == np.uint8
        if is_levels and not self.takes_uint8:
            raise BackendError(
                "the planes are uint8, but the engine takes only float32",
                "convert them or build it with --uint8-input",
                expected="float32",
                got="uint8",
            )
        used = UINT8_INPUTS[source] if is_levels else source
        np.copyto(self._view(used, np.uint8 if is_levels else np.float32).reshape(plane.shape), plane)
        self._written.add(used)
        if self.takes_uint8 and (idle := source if is_levels else UINT8_INPUTS[source]) in self._written:
            # The engine adds both inputs of a source, so the unused one has to be zero.
            self._hosts[idle].array[:] = 0
            if not self._is_zero_copy:
                self._driver.upload(self._pointers[idle], self._hosts[idle], self._stream)
            self._written.remove(idle)
        return used

    def _view(self, name: str, dtype: type) -> Array:
        """Flat view of the page-locked memory of an input or output."""
        memory: Array = self._hosts[name].array.view(dtype)
        return memory

    def _record(self, way: _Way) -> None:
        """Capture a run in a CUDA graph for later ones; if that fails, keep the reason and go on without a graph."""
        try:
            graph = self._driver.capture(self._stream, lambda: self._start(way))
        except BackendError as error:
            self.graph_problem = str(error)
        else:
            self._graphs[way] = graph
            self._sized.callback(self._driver.destroy_graph, graph)

    def _start(self, way: _Way) -> None:
        if not self._is_zero_copy:
            with self._timer.stage("h2d"):
                for name in way.inputs:
                    self._driver.upload(self._pointers[name], self._hosts[name], self._stream)
        with self._timer.stage("infer"):
            if not self._context.execute_async_v3(self._stream):
                raise BackendError(
                    f"{self.product.title} cannot run the engine on {self.device}: {self._log.first_error}",
                    "build it again on this machine",
                )
        if not self._is_zero_copy:
            with self._timer.stage("d2h"):
                for name in way.outputs:
                    self._driver.download(self._hosts[name], self._pointers[name], self._stream)

    def _prepare(self, size_hw: tuple[int, int]) -> None:
        """Free the buffers of the last size, then allocate and bind those for this one."""
        self._check_size(size_hw)
        self._size_hw = None
        self._sized.close()
        height, width = size_hw
        shape = (1, 1, height, width)
        nbytes = dict.fromkeys((*_SOURCES, OUTPUT), 4 * height * width)
        if self.takes_uint8:
            nbytes |= dict.fromkeys(UINT8_INPUTS.values(), height * width)
        if self.uint8_range is not None:
            nbytes |= {UINT8_OUTPUTS[self.uint8_range]: height * width, MEAN: 4}
        for name in self._inputs:
            if not self._context.set_input_shape(name, shape):
                raise BackendError(
                    f"the engine refuses the size {height}x{width} (height x width): {self._log.first_error}", "build it again"
                )
        self._graphs = {}
        self._hosts: dict[str, HostBuffer] = {}
        self._pointers: dict[str, int] = {}
        # New memory has arbitrary content, also in inputs that have to be zero if unused.
        self._written = set(self._inputs)
        with contextlib.ExitStack() as sized:
            for name, size in nbytes.items():
                self._bind(name, size, sized)
            scratch = self._allocate(int(self._context.update_device_memory_size_for_shapes()), sized)
            self._give_scratch(*scratch)
            self._sized.push(sized.pop_all())
        self._size_hw = size_hw

    def _bind(self, name: str, nbytes: int, sized: contextlib.ExitStack) -> None:
        host = self._driver.allocate_host(nbytes, mapped=self._is_zero_copy)
        sized.callback(self._driver.free_host, host)
        pointer = host.pointer if self._is_zero_copy else self._allocate(nbytes, sized)[0]
        self._hosts[name], self._pointers[name] = host, pointer
        self._context.set_tensor_address(name, pointer)

    def _allocate(self, nbytes: int, sized: contextlib.ExitStack) -> tuple[int, int]:
        if nbytes == 0:
            return 0, 0
        pointer = self._driver.allocate(nbytes)
        sized.callback(self._driver.free, pointer)
        return pointer, nbytes

    def _give_scratch(self, pointer: int, nbytes: int) -> None:
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(pointer, nbytes)
        else:
            self._context.device_memory = pointer

    @property
    def _is_zero_copy(self) -> bool:
        return self.device.is_zero_copy

    def _check_size(self, size_hw: tuple[int, int]) -> None:
        if self.sizes_hw.holds(size_hw):
            return
        (min_h, min_w), (max_h, max_w) = self.sizes_hw.min_hw, self.sizes_hw.max_hw
        height, width = size_hw
        takes = f"{max_h}x{max_w}"
        if self.sizes_hw.min_hw != self.sizes_hw.max_hw:
            takes = f"{min_h}x{min_w} to {takes}"
        raise ShapeError(
            f"the engine was built for images of {takes} (height x width), but these are {height}x{width}",
            f"build one with --size {height}x{width}",
            expected=self.sizes_hw,
            got=size_hw,
        )

    def _check_tensors(self) -> None:
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        self.uint8_range = next((one for one, name in UINT8_OUTPUTS.items() if name in names), None)
        self.takes_uint8 = names >= set(UINT8_INPUTS.values())
        self._inputs = (*_SOURCES, *(UINT8_INPUTS.values() if self.takes_uint8 else ()))
        besides = set() if self.uint8_range is None else {UINT8_OUTPUTS[self.uint8_range], MEAN}
        wrong = [name for name in names if self._engine.get_tensor_dtype(name) != self._dtype(name)]
        if names != {*self._inputs, OUTPUT, *besides} or wrong:
            raise BackendError(
                f"the engine must have the float32 inputs {INPUT_A} and {INPUT_B} and the output {OUTPUT}, but has "
                f"{', '.join(sorted(names)[:5])}",
                "build it again with 'refusion-edge build'",
                expected=(INPUT_A, INPUT_B, OUTPUT),
                got=tuple(sorted(names)),
            )

    def _dtype(self, name: str) -> Any:
        return self._trt.uint8 if name in (*UINT8_OUTPUTS.values(), *UINT8_INPUTS.values()) else self._trt.float32

    def _read_sizes(self) -> SizeRange:
        fixed = tuple(self._engine.get_tensor_shape(INPUT_A))
        dynamic = min(fixed) < 0
        shapes = self._engine.get_tensor_profile_shape(INPUT_A, 0) if dynamic else (fixed, fixed, fixed)
        min_hw, opt_hw, max_hw = ((int(shape[2]), int(shape[3])) for shape in shapes)
        return SizeRange(min_hw, opt_hw, max_hw)

    def _drop_engine(self) -> None:
        del self._engine, self._runtime

    def _drop_context(self) -> None:
        del self._context


class TrtBackend(PlanRunner):
    """A TensorRT plan, 10.3 and newer."""

    name = "tensorrt"
    product = TENSORRT
    probe, probe_build = TENSORRT.probe, TENSORRT.probe_build


class TrtRtxBackend(PlanRunner):
    """A TensorRT-RTX plan; plans can be built on any machine, and their compilation finishes on loading."""

    name = "tensorrt-rtx"
    product = TENSORRT_RTX
    probe, probe_build = TENSORRT_RTX.probe, TENSORRT_RTX.probe_build
