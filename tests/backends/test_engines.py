"""Engines: every usable back end gives the numbers of the reference."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import OrtBackend, open_reference
from refusion_edge.backends.registry import open_weights, status
from refusion_edge.errors import BackendError, ShapeError, UsageError
from refusion_edge.network.forms import REFERENCE
from refusion_edge.network.graph import fill, read_template
from tests.conftest import ROOT, TOLERANCE
from tests.raising import raises


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "eager"])
@pytest.mark.parametrize("size_hw", [(8, 8), (13, 47), (96, 64)])
def test_engines_agree(random_state: State, name: str, size_hw: tuple[int, int]) -> None:
    if not status(name).usable:
        pytest.skip(f"{name}: {status(name).reason}")
    draw = np.random.default_rng(1)
    a, b = (draw.random((1, 1, *size_hw), np.float32) for _ in range(2))
    with open_weights(random_state, name) as engine, open_reference(random_state) as reference:
        assert engine.name == name
        fused, again = engine.fuse(a, b).copy(), engine.fuse(a, b)
        assert np.array_equal(fused, again)
        assert fused.dtype == np.float32
        assert np.abs(fused - reference.fuse(a, b)).max() <= TOLERANCE["fp32"]


def test_sources_are_not_changed(random_state: State, rng: np.random.Generator) -> None:
    a, b = (rng.random((1, 1, 16, 16), np.float32) for _ in range(2))
    before = a.copy(), b.copy()
    a.flags.writeable = b.flags.writeable = False
    with open_weights(random_state) as engine:
        engine.fuse(a, b)
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])


def test_fixed_size_engine_says_how_to_get_another(random_state: State, rng: np.random.Generator) -> None:
    with OrtBackend(fill(read_template(REFERENCE, "fp32"), random_state, (16, 24)).SerializeToString()) as engine:
        planes = rng.random((1, 1, 20, 30), np.float32)
        with raises(ShapeError, remedy=("--size 20x30", "--size dynamic"), expected=(16, 24), got=(20, 30)):
            engine.fuse(planes, planes)


def test_something_that_is_no_model_is_refused() -> None:
    with raises(BackendError, "ONNX Runtime"):
        OrtBackend(b"not a model")


def test_a_model_with_other_inputs_is_refused() -> None:
    with raises(BackendError, "88 inputs", expected=("a", "b")):
        OrtBackend(read_template(REFERENCE, "fp32").SerializeToString())


def test_weights_need_a_back_end_without_engine(random_state: State) -> None:
    with raises(UsageError, "'eager'", got="eagre"):
        open_weights(random_state, "eagre")
    with raises(BackendError, "tensorrt"):
        open_weights(random_state, "tensorrt")


OUT_OF_MEMORY = (
    "import resource, sys\n"
    "import numpy as np\n"
    "from refusion_edge.backends.registry import RunOptions, open_weights\n"
    "from refusion_edge.errors import BackendError\n"
    "from refusion_edge.network.checkpoint import read_checkpoint\n"
    "from refusion_edge.network.weights import weights_path\n"
    "state = read_checkpoint(weights_path('ir_vis')).state\n"
    "planes = np.random.default_rng(0).random((2, 1, 1, 2400, 3200), np.float32)\n"
    "small = planes[..., :16, :16].copy()\n"
    "with open_weights(state, sys.argv[1], RunOptions(threads=1)) as engine:\n"
    "    engine.fuse(*small)\n"
    "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
    "    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))\n"
    "    try:\n"
    "        engine.fuse(*planes)\n"
    "    except BackendError as error:\n"
    "        print(error)\n"
    "    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
    "    print(engine.fuse(*small).shape)\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "eager", "native"])
def test_too_little_memory_is_one_line_and_the_next_image_is_fused(name: str) -> None:
    if not status(name).usable:
        pytest.skip(f"{name}: {status(name).reason}")
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said, after = done.stdout.splitlines()
    assert "memory" in said
    assert "2400x3200" in said
    assert after == "(1, 1, 16, 16)"


def test_failures_of_onnx_runtime_are_told_apart(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.zeros((1, 1, 20, 30), np.float32)
    with OrtBackend(fill(read_template(REFERENCE, "fp32"), random_state).SerializeToString()) as engine:
        for cause, problem, remedy in (
            (RuntimeError("Failed to allocate memory for requested buffer of size 9"), "memory", "smaller"),
            (MemoryError(), "memory", "smaller"),
            (RuntimeError("INVALID_GRAPH :\n no kernel for Conv"), "no kernel for Conv", "--backend"),
        ):

            def fail(*_: object, cause: Exception = cause) -> None:
                raise cause

            monkeypatch.setattr(engine, "_session", SimpleNamespace(run=fail))
            with raises(BackendError, "20x30", problem, remedy=remedy):
                engine.fuse(planes, planes)


def test_failures_of_torch_are_ours(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    if not status("eager").usable:
        pytest.skip(f"eager: {status('eager').reason}")
    planes = np.zeros((1, 1, 20, 30), np.float32)
    with open_weights(random_state, "eager") as engine:

        def fail(*_: object) -> None:
            raise RuntimeError("could not create a primitive")

        monkeypatch.setattr(engine, "_network", fail)
        with raises(BackendError, "20x30", "primitive", remedy="--backend"):
            engine.fuse(planes, planes)
