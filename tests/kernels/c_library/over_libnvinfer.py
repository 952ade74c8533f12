"""TensorRT plans in the C library over the libnvinfer.so and the libcuda.so.1 that are found, those of ``tests/fakes``.

python -m tests.kernels.c_library.over_libnvinfer LIBRARY INTEGRATED
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge.backends.tensorrt.settings import PlanSettings
from refusion_edge.bundle.folder import install_bundle, read_bundle, sha256
from refusion_edge.bundle.manifest import MANIFEST, MODEL, PLAN, WEIGHTS, GateNotRun, GateResult, Manifest, TensorSpec
from refusion_edge.bundle.spec import EngineSpec
from refusion_edge.bundle.trust import trust
from refusion_edge.machine import Target
from tests.kernels.c_library.c_library import (
    DAMAGED,
    FAILED,
    INVALID,
    NO_MEMORY,
    UNREADABLE,
    UNSUPPORTED,
    UNTRUSTED,
    fuse,
    load_library,
    passed,
)

_SIZES = (21, 37), (21, 37), (21, 37), (16, 24), (16, 24)
_GATE = GateResult(psnr_db=80.0, ssim=0.9999, max_error=0.1, pairs=2, pairs_sha256="1" * 64)


def write_plan_bundle(path: Path, words: str = "", *, magic: str = "ftrt", **changes: Any) -> Path:
    """A bundle as ``build`` writes it and trusts it, with a plan for the fake library, which reads ``words``."""
    files = {MODEL: b"model", WEIGHTS: b"weights", PLAN: f"{magic} {path.name} {words}".encode()}
    shape = (1, 1, None, None)
    manifest = Manifest(
        spec=EngineSpec("ir_vis", "fp16", "tensorrt"),
        form="tensorrt-folded",
        engine=PLAN,
        key="0" * 64,
        target=Target(),
        weights_sha256=sha256(files[WEIGHTS]),
        inputs=(TensorSpec("a", "float32", shape), TensorSpec("b", "float32", shape)),
        outputs=(TensorSpec("fused", "float32", shape),),
        gate=_GATE,
        tools={"tensorrt": "10.3.0"},
        files={name: sha256(data) for name, data in files.items()},
    )
    trust(install_bundle(path, dataclasses.replace(manifest, **changes), files), "a test")
    read_bundle(path)
    return path


class Fakes:
    """What the fakes count."""

    def __init__(self, integrated: bool) -> None:
        self._cuda, self._nvinfer = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvinfer.so")
        self._cuda.integrate(ctypes.c_int(integrated))

    @property
    def held(self) -> tuple[int, int, int]:
        """Resources of the driver, current contexts, objects of TensorRT."""
        return self._cuda.held_by_callers(), self._cuda.contexts_here(), self._nvinfer.objects_alive()

    @property
    def enqueued(self) -> int:
        """Runs that were handed to TensorRT since its last start."""
        runs: int = self._nvinfer.runs_enqueued()
        return runs


def main(path: Path, integrated: bool) -> None:
    """Fuse with plans of all kinds, and with damaged and unfit ones."""
    library, fakes = load_library(path), Fakes(integrated)
    folder = Path("bundles")
    # Two sizes, each run once and recorded once; or recorded never, and every image run.
    for words, enqueued in {"": 4, "pixels levels": 4, "capture": 6}.items():
        fuse_with(library, fakes, write_plan_bundle(folder / "good", words), enqueued)
    host_code = EngineSpec("ir_vis", "fp16", "tensorrt", settings=PlanSettings(version_compatible=True))
    fuse_with(library, fakes, write_plan_bundle(folder / "code", "code", spec=host_code), 4)
    refuse(library, fakes, folder)
    refuse_damaged(library, fakes, write_plan_bundle(folder / "damaged"))
    fail_to_run(library, fakes, folder)
    require_trust(library, write_plan_bundle(folder / "foreign"))
    assert fakes.held == (0, 0, 0)


def fuse_with(library: Any, fakes: Fakes, bundle: Path, enqueued: int) -> None:
    """Fuse several sizes into the means that the fake computes, from one graph for each size where one can be recorded."""
    engine = library.create_plan(str(bundle).encode(), 0)
    assert engine, library.error()
    assert (library.network(engine), library.isa(engine), library.threads(engine)) == (b"refusion", b"sm_87", 0)
    rng = np.random.default_rng(5)
    for size in _SIZES:
        a, b = rng.random((2, *size), np.float32)
        fused = fuse(library, engine, a, b)
        assert fused is not None, library.error()
        assert np.array_equal(fused, (a + b) / 2)
    assert fakes.enqueued == enqueued
    a[3, 4] = np.nan
    assert np.isnan(fuse(library, engine, a, b)).all()
    assert library.statistics(engine, *passed(a), *passed(b), *a.shape, np.zeros(8).ctypes.data) == UNSUPPORTED
    for size in (65, 96), (8, 97), (5, 37):
        large = np.zeros(size, np.float32)
        assert fuse(library, engine, large, large) is None
        assert library.error_code() == INVALID
    library.destroy(engine)
    assert fakes.held == (0, 0, 0)


def refuse(library: Any, fakes: Fakes, folder: Path) -> None:
    """Bundles that this library or this device cannot run leave nothing behind."""
    unfit = {
        "load": FAILED,
        "code": FAILED,
        "context": NO_MEMORY,
        "half": UNSUPPORTED,
        "other": UNSUPPORTED,
    }
    bundles = {write_plan_bundle(folder / words, words): code for words, code in unfit.items()}
    bundles[write_plan_bundle(folder / "rtx", magic="vtrt")] = FAILED
    bundles[write_plan_bundle(folder / "unchecked", gate=GateNotRun("no device there", _GATE))] = UNSUPPORTED
    native = EngineSpec("ir_vis", "fp32", "native")
    bundles[write_plan_bundle(folder / "native", spec=native, engine=WEIGHTS, form="cpu")] = UNSUPPORTED
    bundles[folder / "nowhere"] = UNREADABLE
    for bundle, code in bundles.items():
        assert library.create_plan(str(bundle).encode(), 0) is None, bundle
        assert library.error_code() == code, (bundle, library.error())
        assert fakes.held == (0, 0, 0)


def refuse_damaged(library: Any, fakes: Fakes, bundle: Path) -> None:
    """A changed plan is refused, and a changed manifest ends in a code or changes nothing that matters."""
    plan, text, rng = (bundle / PLAN).read_bytes(), (bundle / MANIFEST).read_bytes(), np.random.default_rng(6)
    for changed in (plan[:-1], plan + b" ", b""):
        (bundle / PLAN).write_bytes(changed)
        assert library.create_plan(str(bundle).encode(), 1) is None
        assert library.error_code() == DAMAGED
    (bundle / PLAN).unlink()
    os.mkfifo(bundle / PLAN)  # nothing is waited for
    assert library.create_plan(str(bundle).encode(), 1) is None
    assert library.error_code() == UNREADABLE
    (bundle / PLAN).unlink()
    (bundle / PLAN).write_bytes(plan)
    fields = json.loads(text)
    other = {**fields["spec"], "network": "other"}
    for damaged in ({"engine": "../x"}, {"schema": "other/1"}, {"files": {}}, {"spec": 1}, {"spec": other}):
        (bundle / MANIFEST).write_text(json.dumps({**fields, **damaged}))
        assert library.create_plan(str(bundle).encode(), 1) is None
        assert library.error_code() == DAMAGED, library.error()
    for _ in range(300):
        changed = bytearray(text)
        changed[rng.integers(len(text))] ^= 1 << int(rng.integers(8))
        (bundle / MANIFEST).write_bytes(changed if rng.random() < 0.5 else text[: rng.integers(len(text))])
        if engine := library.create_plan(str(bundle).encode(), 1):
            library.destroy(engine)
        else:
            assert library.error_code() in (DAMAGED, UNSUPPORTED, UNREADABLE), library.error()
    assert fakes.held == (0, 0, 0)


def fail_to_run(library: Any, fakes: Fakes, folder: Path) -> None:
    """A size that TensorRT refuses and a run that fails are errors of that image."""
    a = np.zeros((16, 24), np.float32)
    for words in ("shape", "run"):
        engine = library.create_plan(str(write_plan_bundle(folder / words, words)).encode(), 0)
        assert engine, library.error()
        for _ in range(2):
            assert fuse(library, engine, a, a) is None
            assert library.error_code() == FAILED
            assert b"\n" not in library.error()
        library.destroy(engine)
        assert fakes.held == (0, 0, 0)
    # The reason for a failure is its own, not an error that an image before survived.
    engine = library.create_plan(str(write_plan_bundle(folder / "later", "capture later")).encode(), 0)
    assert np.array_equal(fuse(library, engine, a, a + 1), a + 0.5)
    assert fuse(library, engine, a, a) is None
    assert library.error_code() == NO_MEMORY
    library.destroy(engine)
    engine = library.create_plan(str(write_plan_bundle(folder / "fixed", "fixed")).encode(), 0)
    assert np.array_equal(fuse(library, engine, a, a + 1), a + 0.5)
    assert fuse(library, engine, a[:15], a[:15]) is None
    assert library.error_code() == INVALID
    library.destroy(engine)


def require_trust(library: Any, bundle: Path) -> None:
    """A plan that is not on the list runs only if the caller says so; so does every plan if others can write the list."""
    trusted = Path(os.environ["REFUSION_EDGE_TRUSTED"])
    listed = trusted.read_text()
    trusted.chmod(0o666)
    for text in (listed, "", None):
        if text is None:
            trusted.unlink()
        else:
            trusted.write_text(text)
        assert library.create_plan(str(bundle).encode(), 0) is None
        assert library.error_code() == UNTRUSTED
        if trusted.exists():
            trusted.chmod(0o600)
    engine = library.create_plan(str(bundle).encode(), 1)
    assert engine, library.error()
    library.destroy(engine)
    assert not trusted.exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "integrated")
