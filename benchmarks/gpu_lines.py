"""What to run on a lent machine with a GPU, line by line: the table of ``benchmarks.gpu_runs``.

Every step is a command of this repository or of the CUDA toolkit. In a command, ``{python}`` is the interpreter, ``{folder}``
the folder of what goes in and comes out, and ``{json}`` the file that the step writes its own result to. The times are guesses
until a machine was there; a step that is expected to take longer than what is left of the limit is not started.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RECORDINGS, PAIRS, PYCUDA = "emulator", "ir_vis.zip", "pycuda"
"""What goes in, by its name in the folder."""

INPUTS = {
    RECORDINGS: "python -m benchmarks.gpu_emulator record {folder}/emulator",
    PAIRS: "python -m benchmarks.gpu_pack --task ir_vis --data DIR -o {folder}/ir_vis.zip",
    PYCUDA: "pip download --no-binary pycuda -d {folder}/pycuda pycuda setuptools wheel",
}
"""How each of them is made beforehand, on a machine without a GPU."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        name: Its name within the line.
        command: The words, see the module.
        expected_s: Time that it should take.
        modules: Python modules that it needs.
        programs: Programs that it needs on the path.
        inputs: What it needs in the folder: keys of ``INPUTS``, or what an earlier step leaves there.
        run: Folder of a training run below the folder. The step continues it if it is there, and may be stopped at its
            expected time.
        environment: Further environment variables.
    """

    name: str
    command: tuple[str, ...]
    expected_s: float
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    run: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def writes_json(self) -> bool:
        """Whether it writes a result of its own."""
        return "{json}" in self.command


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        name: Its name.
        answers: What is known afterwards.
        steps: In order; each runs even if one before it failed.
    """

    name: str
    answers: str
    steps: tuple[Step, ...]

    @property
    def expected_s(self) -> float:
        """Time that it should take."""
        return sum(step.expected_s for step in self.steps)


def lines() -> tuple[Line, ...]:
    """The lines, in the order in which they should run."""
    from refusion_edge.kernels.gpu.schedule import make_schedule

    return (_SMOKE, _META, _TRAIN, _FRAME, _sweep(tuple(make_schedule().kernels)), _TENSORRT, _DRIVERS, _SANITIZE)


def _module(name: str, *words: str) -> tuple[str, ...]:
    return "{python}", "-m", name, *words


def _suite(parts: str, *words: str) -> tuple[str, ...]:
    return _module("benchmarks.gpu_suite", "--parts", parts, *words, "--json", "{json}")


def _tests(*words: str) -> tuple[str, ...]:
    return _module("pytest", "-q", "-m", "gpu", "tests/gpu", *words)


def _trained(name: str, *words: str) -> tuple[str, ...]:
    fixed = ("--task", "ir_vis", "--data", "{folder}/ir_vis", "--device", "cuda")
    return _module("refusion_edge", "train", *fixed, *words, "-o", f"{{folder}}/{name}")


_TORCH, _TRITON = ("torch",), ("torch", "triton")

_UNPACK = Step("unpack", _module("zipfile", "-e", f"{{folder}}/{PAIRS}", "{folder}/ir_vis"), 5, inputs=(PAIRS,))

_SMOKE = Line(
    "smoke",
    "whether the kernels, the loss and the network compute on this device what their references and the emulator do",
    (
        Step("emulator", _module("benchmarks.gpu_emulator", "compare", "{folder}/emulator", "--json", "{json}"), 20,
             inputs=(RECORDINGS,)),
        Step("checks", _suite("checks", "--sizes", "480x640"), 120, _TRITON),
        Step("tests", _tests(), 180, ("pytest", *_TRITON)),
    ),
)  # fmt: skip

_META = Line(
    "meta",
    "whether P can learn from large batches: agreement of meta-gradients over 8 batches of 16, 64 and 256 crops of 128",
    (
        _UNPACK,
        Step("warm-up", _trained("meta-run", "--set", "run.steps=300"), 90, _TORCH, inputs=("ir_vis",), run="meta-run"),
        Step(
            "agreement",
            # Each pair is fused in both orders, which makes two crops.
            _module("benchmarks.meta_agreement", "{folder}/meta-run", "--data", "{folder}/ir_vis", "--pairs", "8", "32", "128",
                    "--crop", "128", "--batches", "8", "--device", "cuda", "--json", "{json}"),
            200, _TORCH, inputs=("ir_vis", "meta-run"),
        ),
    ),
)  # fmt: skip

_TRAIN = Line(
    "train",
    "what the learned loss gives on `ir_vis`, next to the fixed weights of the prior with the same number of steps",
    (
        _UNPACK,
        Step("learned", _trained("learned"), 270, _TORCH, inputs=("ir_vis",), run="learned"),
        Step("control", _trained("control", "--set", "meta.engine=off"), 270, _TORCH, inputs=("ir_vis",), run="control"),
    ),
)

_FRAME = Line(
    "frame",
    "time of a frame at 640x480 and 1280x1024 next to torch, each launch next to the roofline and to the model",
    (
        Step("engines", _suite("engines"), 90, _TRITON),
        Step("times", _suite("frame,launches,loss"), 300, _TRITON),
        Step(
            "model",
            _module("benchmarks.gpu_model", "--table", "benchmarks/results/gpu-model.json",
                    "--beside", "{folder}/frame-times.json"),
            10, inputs=("frame-times.json",),
        ),
    ),
)  # fmt: skip


def _sweep(kernels: tuple[str, ...]) -> Line:
    # Mixing walks no strips, and these two take a hundredth of a frame.
    swept = [name for name in kernels if not name.endswith("mixing") and name not in ("to_plane", "stretch")]
    steps = tuple(Step(name, _suite("sweep", "--kernels", name, "--sizes", "480x640"), 45, _TRITON) for name in swept)
    return Line("sweep", "which tiles and warps are the fastest for each kernel", steps)


_TENSORRT = Line(
    "tensorrt",
    "whether an engine of TensorRT-RTX runs on this device, how accurate it is and how long it takes, in fp16 and int8",
    tuple(
        step
        for precision in ("fp16", "int8")
        for step in (
            Step(
                f"build-{precision}",
                _module("refusion_edge", "build", "--task", "ir_vis", "--backend", "tensorrt-rtx", "--precision", precision,
                        "--size", "480x640", "-o", f"{{folder}}/rtx-{precision}", "--json", "{json}", "--overwrite"),
                90, ("tensorrt_rtx",),
            ),
            Step(
                f"bench-{precision}",
                _module("refusion_edge", "bench", f"{{folder}}/rtx-{precision}", "--loaded", "--json", "{json}"),
                30, ("tensorrt_rtx",), inputs=(f"rtx-{precision}",),
            ),
        )
    ),
)  # fmt: skip

_DRIVERS = Line(
    "drivers",
    "whether both layers over the driver work, what they cost, and whether 10,000 frames and 100 sizes leave memory behind",
    (
        Step(
            "pycuda",
            _module("pip", "install", "--no-index", "--no-build-isolation", "--find-links", f"{{folder}}/{PYCUDA}", "pycuda"),
            120, ("pip",), ("nvcc",), (PYCUDA,),
        ),
        Step("tests", _tests("-k", "back_end_fused"), 90, ("pytest", *_TRITON)),
        Step("engines", _suite("engines,leaks"), 150, _TRITON),
    ),
)  # fmt: skip

# Outside the allocations of torch, memcheck sees nothing that lies in its cache.
_NO_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def _sanitized(tool: str, *command: str) -> tuple[str, ...]:
    return "compute-sanitizer", "--tool", tool, "--error-exitcode", "86", *command


_SANITIZE = Line(
    "sanitize",
    "whether a launch leaves its memory or races, and whether the counters of the device are those of the emulator",
    (
        *(
            Step(
                f"{tool}-frames", _sanitized(tool, *_module("benchmarks.gpu_emulator", "frame", "{folder}/emulator")), 60,
                programs=("compute-sanitizer",), inputs=(RECORDINGS,),
            )
            for tool in ("memcheck", "racecheck")
        ),
        Step("counters", _module("benchmarks.gpu_counters", "{folder}/emulator", "--json", "{json}"), 90, programs=("ncu",),
             inputs=(RECORDINGS,)),
        *(
            Step(
                f"{tool}-kernels", _sanitized(tool, *_tests("-k", "every_kernel or closed_forms")), 150, ("pytest", *_TRITON),
                ("compute-sanitizer",), environment=_NO_CACHE,
            )
            for tool in ("memcheck", "racecheck")
        ),
    ),
)  # fmt: skip
