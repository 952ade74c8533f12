"""What every test can use: where real data is, small images, weights, and the command line in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Triton decides when a kernel is imported whether it is compiled or interpreted, and other conftest files import kernels
# before pytest has read its options. Only `pytest -m gpu` needs a GPU.
os.environ.setdefault("TRITON_INTERPRET", "0" if {"-mgpu", "gpu"} & set(sys.argv) else "1")

# A shell starts background jobs with SIGINT ignored, and nohup with SIGHUP; both would be inherited by the commands under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest.register_assert_rewrite("tests.raising")

from refusion_edge import cuda, machine
from refusion_edge.arrays import Array, State
from refusion_edge.cli import main
from refusion_edge.images import samples
from refusion_edge.images.io import read_image, write_image
from refusion_edge.network.forms import FORMS
from refusion_edge.network.parameters import PARAMETERS

# Time decides no test: a machine that is busy is slow at making examples, too.
with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy machine")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

# Every graph that ships with the package, as form and precision.
TEMPLATES = [(name, precision) for name, form in FORMS.items() for precision in form.precisions]

# Largest absolute difference of the network's output in [0, 1] that counts as equal.
TOLERANCE = {
    "golden": 2e-5,  # fp32 against the official fp32 output, which is up to 1.3e-5 from float64 itself
    "fp32": 2e-5,  # two fp32 engines
    "fp16": 1.6e-2,  # sixteen steps of half precision at 1
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a device where there is none, with the reason."""
    if item.get_closest_marker("gpu") is not None and (problem := cuda.problem()):
        pytest.skip(f"needs an NVIDIA device: {problem}")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder with an empty engine cache, and trust no engine yet."""
    monkeypatch.setenv("REFUSION_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFUSION_EDGE_TRUSTED", str(tmp_path / "trusted"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)


@pytest.fixture(autouse=True)
def _memory_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some commands change the allocator of their process, which here belongs to all tests."""
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real pairs, official checkpoints and golden vectors, which are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data beside the repository (../shared/data), which is not distributed")
    return SHARED


@pytest.fixture(scope="session")
def shrunken_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample pairs at a third of their size, which the accuracy gate takes a ninth of the time for."""
    import cv2

    folder = tmp_path_factory.mktemp("samples")
    for path in samples.FOLDER.rglob("*.png"):
        target = folder / path.relative_to(samples.FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(target, cv2.resize(read_image(path), None, fx=1 / 3, fy=1 / 3, interpolation=cv2.INTER_AREA))
    return folder


@pytest.fixture
def small_samples(shrunken_samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything in this process use the shrunken sample pairs."""
    monkeypatch.setattr(samples, "FOLDER", shrunken_samples)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20261122)


@pytest.fixture(scope="session")
def random_state() -> State:
    """Parameters that no training made, scaled so that the output spreads over (0, 1)."""
    draw = np.random.default_rng(7)
    state = {}
    for name, shape in PARAMETERS.items():
        if len(shape) == 4:
            values = draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        else:
            values = draw.standard_normal(shape) * 0.3 + (0.0 if name.endswith("bias") else 1.0)
        state[name] = values.astype(np.float32)
    return state


@pytest.fixture
def picture(rng: np.random.Generator) -> Callable[..., Array]:
    """Make a smooth random image: ``image(height, width, channels=3, dtype=np.uint8)``."""
    import cv2

    def make(height: int, width: int, channels: int = 1, dtype: type = np.uint8) -> Array:
        shape = (height, width) if channels == 1 else (height, width, channels)
        noise = cv2.GaussianBlur(rng.random(shape).astype(np.float32), (5, 5), 1.0)
        scaled = (noise - noise.min()) / (noise.max() - noise.min())
        return scaled.astype(dtype) if dtype is np.float32 else (scaled * np.iinfo(dtype).max).astype(dtype)

    return make


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: ``code, out, err = run_cli("fuse", ...)``."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def one_sentence(text: str) -> bool:
    """Tell whether an error is one line that says something, without a traceback."""
    lines = text.strip().splitlines()
    return len(lines) == 1 and len(lines[0].split()) > 3 and "Traceback" not in text


def files_below(folder: Path) -> list[str]:
    """All files and folders below a folder, hidden ones too."""
    return sorted(str(Path(root, name).relative_to(folder)) for root, dirs, files in os.walk(folder) for name in dirs + files)
