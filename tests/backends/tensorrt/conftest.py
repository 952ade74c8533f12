"""The fake of ``tensorrt``, installed for a test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.backends.registry import Status
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.family import make_model
from refusion_edge.network.weights import weights_path
from refusion_edge.sizes import SizeRange
from tests.fakes.tensorrt import FakeTensorRT, fake_trt

__all__ = ["fake_trt"]

SIZES = SizeRange((16, 16), (24, 32), (64, 96))
SPEC = BuildSpec("medical", "fp16", backend="tensorrt", sizes_hw=SIZES, output=Path("x"))


@pytest.fixture
def device(fake_trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRT]:
    """TensorRT on a device that fuses medical pairs as the real network does."""
    state = read_checkpoint(weights_path("medical")).state
    fake_trt.profile = tuple((1, 1, *size) for size in (SIZES.min_hw, SIZES.opt_hw, SIZES.max_hw))
    for probe in ("probe", "probe_build"):
        monkeypatch.setattr(
            f"refusion_edge.backends.tensorrt.runner.TrtBackend.{probe}", lambda: Status(usable=True, reason="fake")
        )
    monkeypatch.setattr("refusion_edge.export.targets.tensorrt.installed_version", lambda _: fake_trt.__version__)
    with OrtBackend(make_model("tensorrt-folded", "fp16", state).SerializeToString(), threads=1) as network:
        fake_trt.compute = network.fuse
        yield fake_trt
