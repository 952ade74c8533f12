"""What the package promises: its public names, and that importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import refusion_edge
from tests.conftest import ROOT

PUBLIC_NAMES = [
    "TASKS",
    "BuildReport",
    "BuildSpec",
    "Checkpoint",
    "EngineBundle",
    "FusedFrame",
    "FusedStream",
    "Fuser",
    "Manifest",
    "RefusionError",
    "Sink",
    "Task",
    "__version__",
    "build",
    "fuse_video",
    "load",
    "open_sink",
    "read_bundle",
    "read_checkpoint",
    "read_image",
    "score",
    "stream",
    "write_image",
    "write_pth",
    "write_safetensors",
]
HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "safetensors", "rich", "numpy")


def test_public_names() -> None:
    assert sorted(refusion_edge.__all__) == sorted(PUBLIC_NAMES)
    for name in PUBLIC_NAMES:
        assert getattr(refusion_edge, name) is not None
    assert set(dir(refusion_edge)) == set(PUBLIC_NAMES)
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        refusion_edge.fly  # noqa: B018


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_pulls_in_nothing_heavy() -> None:
    assert loaded_by("import refusion_edge") == set()


def test_help_pulls_in_nothing_heavy() -> None:
    code = "from refusion_edge.cli import main\nfor verb in ([], ['build'], ['fuse']): main([*verb, '--help'])"
    script = f"import sys, io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n exec({code!r})"
    assert loaded_by(script) == set()


def test_importing_is_quick() -> None:
    """Not a benchmark: a heavy import would take seconds, this takes hundredths of one."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import refusion_edge"], cwd=ROOT, check=True)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "first", ["rf.stream", "import refusion_edge.stream.frames", "from refusion_edge.stream.uri import Uri"]
)
def test_the_package_of_streams_can_be_called(first: str) -> None:
    code = f"import refusion_edge as rf\n{first}\nprint(rf.stream(ir='0', vis='1'), rf.stream.frames.MS)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "FusedStream" in done.stdout


def test_building_and_fusing_never_import_torch() -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'onnxsim', 'onnxscript'):\n"
        "            raise ImportError('not on an edge device')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import tempfile, pathlib, refusion_edge as rf\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "rf.build(rf.BuildSpec('ir_vis', 'fp16', size_hw=(32, 48), output=folder / 'bundle'))\n"
        "import numpy as np\n"
        "a = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)\n"
        "with rf.load(folder / 'bundle') as fuser:\n"
        "    assert fuser.fuse(a, a.astype(np.uint8)).shape == (32, 48)\n"
    )
    assert "torch" not in loaded_by(code)
