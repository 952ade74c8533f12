"""ONNX Runtime: what its settings are for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.network.graph import fill, read_template
from tests.conftest import ROOT


def test_streaming_gives_the_same_numbers(random_state: State, rng: np.random.Generator) -> None:
    model = fill(read_template("cpu", "fp32"), random_state).SerializeToString()
    a, b = (rng.random((1, 1, 40, 56), np.float32) for _ in range(2))
    with OrtBackend(model, streaming=True) as one, OrtBackend(model) as other:
        assert np.array_equal(one.fuse(a, b), other.fuse(a, b))


@pytest.mark.slow
def test_a_large_image_does_not_hold_its_memory_while_small_ones_follow() -> None:
    script = (
        "import gc\n"
        "import numpy as np\n"
        "from refusion_edge.backends.registry import RunOptions, open_weights\n"
        "from refusion_edge.network.checkpoint import read_checkpoint\n"
        "from refusion_edge.network.weights import weights_path\n"
        "def resident_mb():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(line for line in lines if line.startswith('VmRSS')).split()[1]) / 1024\n"
        "state = read_checkpoint(weights_path('ir_vis')).state\n"
        "with open_weights(state, 'onnxruntime', RunOptions(threads=1)) as engine:\n"
        "    sizes = ((32, 32), (384, 384), (384, 384), (32, 32), (32, 32))\n"
        "    for height, width in sizes:\n"
        "        plane = np.zeros((1, 1, height, width), np.float32)\n"
        "        engine.fuse(plane, plane)\n"
        "        print(resident_mb())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    first, _, large, after, last = (float(line) for line in done.stdout.split())
    assert large > first + 100
    assert max(after, last) < first + (large - first) / 2
