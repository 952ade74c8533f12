"""The C interface and its example: built, installed, run, and equal to Python."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge._version import __version__
from refusion_edge.accuracy.gate import compare
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.backends.registry import status
from refusion_edge.fuser import load
from refusion_edge.images.color import OUTPUT_RANGES, merge, to_output_range
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.network import fast
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.weights import weights_path
from tests.conftest import ROOT, TOLERANCE, one_sentence
from tests.kernels.c_library.c_library import (
    BF16,
    DAMAGED,
    FP16,
    FP32,
    INVALID,
    UNREADABLE,
    UNSUPPORTED,
    described,
    fuse,
    passed,
)

# Building takes most of a minute, in every worker.
pytestmark = pytest.mark.slow

WEIGHTS = weights_path("ir_vis")


@pytest.fixture
def fuse_pgm(installed: Path) -> Path:
    return installed / "bin/fuse_pgm"


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, timeout=300)


def write_pgm(path: str, picture: Array) -> None:
    height, width = picture.shape
    Path(path).write_bytes(f"P5\n{width} {height}\n255\n".encode() + picture.tobytes())


def read_pgm(path: str) -> Array:
    magic, sides, most, pixels = Path(path).read_bytes().split(b"\n", 3)
    assert (magic, most) == (b"P5", b"255")
    width, height = map(int, sides.split())
    return np.frombuffer(pixels, np.uint8).reshape(height, width)


def opened(library: Any, weights: Path, precision: int = FP32) -> int:
    engine = library.create(str(weights).encode(), 2, precision)
    assert engine, library.error()
    return int(engine)


def test_the_installed_example_fuses_what_python_fuses(fuse_pgm: Path) -> None:
    street = sample_paths("ir_vis")[1]
    images = [read_image(path) for path in (street.a, street.b)]
    a, b = (np.ascontiguousarray(image if image.ndim == 2 else image[..., 1]) for image in images)
    write_pgm("a.pgm", a)
    write_pgm("b.pgm", b)
    done = run(fuse_pgm, WEIGHTS, "a.pgm", "b.pgm", "fused.pgm", 2)
    assert done.returncode == 0, done.stderr
    fused = read_pgm("fused.pgm")
    with load("ir_vis") as fuser:
        expected = fuser.fuse(a, b)
    assert fused.shape == expected.shape == a.shape
    # The same kernels give the same image; another engine may round a few pixels the other way.
    most = 0 if status("native").usable else 1
    assert np.abs(fused.astype(int) - expected).max() <= most


def test_the_example_takes_weights_of_both_networks(fuse_pgm: Path, fast_weights: Path, picture: Callable[..., Array]) -> None:
    a, b = picture(45, 70), picture(45, 70)
    write_pgm("a.pgm", a)
    write_pgm("b.pgm", b)
    done = run(fuse_pgm, fast_weights, "a.pgm", "b.pgm", "fused.pgm", 2)
    assert done.returncode == 0, done.stderr
    planes = (plane.astype(np.float32) / np.float32(255) for plane in (a, b))
    expected = fast.reference(read_checkpoint(fast_weights).state, *planes).astype(np.float32)
    levels = merge(to_output_range(expected, "stretch"), None)
    assert levels.std() > 20
    assert np.abs(read_pgm("fused.pgm").astype(int) - levels).max() <= 1


def test_the_library_tells_its_version(library: Any) -> None:
    assert library.version().decode() == __version__


def test_no_threads_stand_for_all_processors(library: Any) -> None:
    engine = library.create(str(WEIGHTS).encode(), 0, FP32)
    assert library.threads(engine) == min(256, len(os.sched_getaffinity(0)))
    library.destroy(engine)


def test_statistics_are_taken_and_given(library: Any, fast_weights: Path, rng: np.random.Generator) -> None:
    a, b = rng.random((2, 45, 67), np.float32)

    def fused(engine: int, figures: Array | None) -> Float32Array | None:
        result = np.full_like(a, np.nan)
        address = None if figures is None else figures.ctypes.data
        failed = library.fuse_adapted(engine, *passed(a), *passed(b), *a.shape, address, *passed(result))
        return None if failed else result

    state = read_checkpoint(fast_weights).state
    engine = opened(library, fast_weights)
    assert library.network(engine) == b"fast"
    assert library.isa(engine) != b""
    figures = np.zeros(fast.STATISTICS)
    assert library.statistics(engine, *passed(a), *passed(b), *a.shape, figures.ctypes.data) == 0
    assert np.allclose(figures, fast.statistics(a, b), rtol=0, atol=1e-12)
    own, given, before = fused(engine, None), fused(engine, figures), fused(engine, figures * 0.5)
    assert own is not None
    assert given is not None
    assert np.array_equal(own, given)
    assert np.abs(before - fast.reference(state, a, b, figures * 0.5)).max() <= TOLERANCE["fp32"]
    assert fused(engine, figures * np.nan) is None
    assert b"statistics" in library.error()
    library.destroy(engine)

    paper = opened(library, WEIGHTS)
    assert library.network(paper) == b"refusion"
    assert fused(paper, None) is not None
    assert fused(paper, figures) is None
    assert library.error_code() == UNSUPPORTED
    assert library.statistics(paper, *passed(a), *passed(b), *a.shape, figures.ctypes.data) == UNSUPPORTED
    assert one_sentence(library.error().decode())
    library.destroy(paper)


@pytest.mark.parametrize(("network", "reduced"), [("paper", BF16), ("fast", BF16), ("fast", FP16)])
def test_the_precision_is_named_in_the_call(
    library: Any, network: str, reduced: int, fast_weights: Path, rng: np.random.Generator
) -> None:
    a, b = (rng.random((45, 67), np.float32) for _ in range(2))
    weights = WEIGHTS if network == "paper" else fast_weights

    def fused_in(precision: int) -> Array | None:
        engine = library.create(str(weights).encode(), 2, precision)
        if engine is None:
            return None
        fused = fuse(library, engine, a, b)
        library.destroy(engine)
        return fused

    exact, rounded = fused_in(FP32), fused_in(reduced)
    assert exact is not None
    if rounded is None:
        assert library.error_code() == UNSUPPORTED
    else:
        assert 50 < compare(rounded, exact).psnr_db < (75 if reduced == BF16 else 95)
    refused = {3: INVALID} if network == "fast" else {FP16: UNSUPPORTED, 3: INVALID}
    for precision, code in refused.items():
        assert fused_in(precision) is None
        assert library.error_code() == code
        assert one_sentence(library.error().decode())


@pytest.mark.parametrize("network", ["paper", "fast"])
def test_weights_in_memory_are_as_good_as_a_file(
    library: Any, network: str, fast_weights: Path, rng: np.random.Generator
) -> None:
    path = fast_weights if network == "fast" else WEIGHTS
    data = path.read_bytes()
    a, b = rng.random((2, 33, 41), np.float32)
    from_file, from_memory = opened(library, path), library.create_from_memory(data, len(data), 1, FP32)
    assert from_memory, library.error()
    assert np.array_equal(fuse(library, from_file, a, b), fuse(library, from_memory, a, b))
    for engine in (from_file, from_memory):
        library.destroy(engine)


def test_damaged_weights_in_memory_are_told_from_wrong_arguments(library: Any, rng: np.random.Generator) -> None:
    data = WEIGHTS.read_bytes()
    header = int.from_bytes(data[:8], "little")
    damaged = [
        data[:1],
        data[:7],
        data[:-4],
        data[: header // 2],
        b"\0" * 100,
        data[:8] + b"[" * header + data[8 + header :],
    ]
    for _ in range(200):
        changed = bytearray(data)
        for at in rng.integers(0, 8 + header, rng.integers(1, 5)):
            changed[at] = rng.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for bytes_of_it in damaged:
        engine = library.create_from_memory(bytes_of_it, len(bytes_of_it), 1, FP32)
        library.destroy(engine)  # such as of a changed name in the metadata
        if engine is None:
            refused += 1
            assert library.error_code() == DAMAGED
            assert one_sentence(library.error().decode(errors="replace"))
    assert refused > 150
    for arguments, code in (
        ((None, 5, 1, FP32), INVALID),
        ((data, 0, 1, FP32), INVALID),
        ((data, len(data), -1, FP32), INVALID),
    ):
        assert library.create_from_memory(*arguments) is None
        assert library.error_code() == code
    assert library.create(b"nowhere", 1, FP32) is None
    assert library.error_code() == UNREADABLE


# 24 MiB of zeros would be gigabytes of values.
_MANY_NUMBERS = """
import resource, sys
from tests.kernels.c_library.c_library import DAMAGED, FP32, load_library
library = load_library(sys.argv[1])
header = b'{"a":[' + b"0," * (12 << 20) + b"0]}"
data = len(header).to_bytes(8, "little") + header
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), resource.RLIM_INFINITY))
assert library.create_from_memory(data, len(data), 1, FP32) is None
assert library.error_code() == DAMAGED, library.error()
"""


def test_a_header_of_many_numbers_takes_little_memory(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = run(Path(sys.executable), "-c", _MANY_NUMBERS, installed / "lib/librefusion_edge.so")
    assert done.returncode == 0, done.stderr


def with_pitch(picture: Array, gap: int) -> Array:
    """The same pixels in rows that lie further apart, upside down in memory."""
    height, width = picture.shape
    wide = np.zeros((height, width + gap), picture.dtype)[::-1, :width]
    wide[:] = picture
    return wide


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("kinds", [(np.uint8, np.uint8), (np.uint16, np.uint8), (np.uint8, np.float32)])
def test_levels_of_cameras_are_fused_as_their_numbers(
    library: Any, kinds: tuple[type, type], stretch: bool, rng: np.random.Generator
) -> None:
    most = {np.uint8: 255, np.uint16: 65535, np.float32: 1}
    pictures = [(rng.random((35, 50)) * most[kind]).astype(kind) for kind in kinds]
    planes = [picture.astype(np.float32) / np.float32(most[kind]) for picture, kind in zip(pictures, kinds, strict=True)]
    engine = opened(library, WEIGHTS)
    expected = fuse(library, engine, *planes)
    assert expected is not None
    sources = [with_pitch(picture, 13) for picture in pictures]
    a, b = map(described, sources)
    stretched = (expected - expected.min()) / (expected.max() - expected.min()) if stretch else expected
    for kind in (np.uint8, np.uint16, np.float32):
        fused = with_pitch(np.full((35, 50), 77, kind), 5)
        beside = np.asarray(fused.base).copy()
        code = library.fuse_planes(engine, ctypes.byref(a), ctypes.byref(b), 35, 50, stretch, ctypes.byref(described(fused)))
        assert code == 0, library.error()
        if kind is np.uint8:
            assert np.array_equal(fused, merge(to_output_range(expected, "stretch" if stretch else "fixed"), None))
        else:
            assert np.abs(fused / most[kind] - stretched.astype(float)).max() <= (0.51 / 65535 if kind is np.uint16 else 1e-7)
        assert np.array_equal(np.asarray(fused.base)[:, 50:], beside[:, 50:])
    library.destroy(engine)


def test_levels_between_black_and_white_of_a_thermal_camera(library: Any, rng: np.random.Generator) -> None:
    cold, warm = 7000, 9000
    thermal = rng.integers(6800, 9200, (35, 50)).astype(np.uint16)
    visible = rng.integers(0, 256, (35, 50)).astype(np.uint8)
    engine = opened(library, WEIGHTS)
    numbers = np.clip((thermal.astype(np.float32) - np.float32(cold)) / np.float32(warm - cold), 0, 1)
    expected = fuse(library, engine, numbers, visible.astype(np.float32) / np.float32(255))
    assert expected is not None
    # In place of the visible picture, in the levels of video: 16 to 235.
    sources = described(thermal, cold, warm), described(visible)
    assert library.fuse_planes(engine, *map(ctypes.byref, sources), 35, 50, 0, ctypes.byref(described(visible, 16, 235))) == 0
    assert np.abs(visible - (16 + expected.clip(0, 1).astype(float) * 219)).max() <= 0.51
    library.destroy(engine)


def test_planes_that_cannot_be_are_refused_untouched(library: Any) -> None:
    engine = opened(library, WEIGHTS)
    good, fused = np.zeros((16, 20), np.uint8), np.full((16, 20), 7, np.uint8)
    nan = np.zeros((16, 20), np.float32)
    nan[3, 4] = np.nan
    strange = described(good)
    strange.type = 3
    narrow = described(good)
    narrow.pitch = 19
    for a, b in (
        (strange, described(good)),
        (narrow, described(good)),
        (described(good, 5, 5), described(good)),
        (described(good, 0, 300), described(good)),
        (described(good), described(nan)),
        (described(good), described(nan, 1, 2)),
    ):
        code = library.fuse_planes(engine, ctypes.byref(a), ctypes.byref(b), 16, 20, 0, ctypes.byref(described(fused)))
        assert code == library.error_code() == INVALID
        assert one_sentence(library.error().decode())
    planes = ctypes.byref(described(good))
    assert library.fuse_planes(engine, planes, None, 16, 20, 0, ctypes.byref(described(fused))) == INVALID
    assert library.fuse_planes(None, planes, planes, 16, 20, 0, ctypes.byref(described(fused))) == INVALID
    assert library.fuse_planes(engine, planes, planes, 16, 7, 0, ctypes.byref(described(fused))) == INVALID
    assert (fused == 7).all()
    result = np.zeros((16, 20), np.float32)
    nans = ctypes.byref(described(nan))
    for stretch in (0, 1):
        result[:] = 0
        assert library.fuse_planes(engine, planes, nans, 16, 20, stretch, ctypes.byref(described(result))) == 0
        assert np.isnan(result).all()
    library.destroy(engine)


def test_what_is_wrong_is_said_in_one_line(fuse_pgm: Path, fast_weights: Path) -> None:
    pixels = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20).astype(np.uint8)
    write_pgm("a.pgm", pixels)
    write_pgm("narrow.pgm", pixels[:, :7].copy())
    write_pgm("other.pgm", pixels[:, :16].copy())
    write_image("a.png", pixels)
    cut, odd = Path("cut.safetensors"), Path("odd.safetensors")
    cut.write_bytes(WEIGHTS.read_bytes()[:-4])
    # Of as many bytes, but with 25 channels.
    odd.write_bytes(fast_weights.read_bytes().replace(b"[24,8,3,3]", b"[25,8,3,3]"))
    Path("a.rfx").write_bytes(b"no program")
    for words, message in (
        ([WEIGHTS, "a.pgm", "other.pgm", "fused.pgm"], "different sizes"),
        ([WEIGHTS, "narrow.pgm", "narrow.pgm", "fused.pgm"], "7x16 (width x height)"),
        ([WEIGHTS, "a.png", "a.pgm", "fused.pgm"], "a.png"),
        ([WEIGHTS, "a.pgm", "a.pgm", "fused.pgm", -1], "-1 threads"),
        (["nowhere", "a.pgm", "a.pgm", "fused.pgm"], "nowhere: it cannot be read"),
        (["nowhere.rfx", "a.pgm", "a.pgm", "fused.pgm"], "nowhere.rfx"),
        (["a.rfx", "a.pgm", "a.pgm", "fused.pgm"], "a.rfx"),
        (["a.rfx", "a.pgm", "a.pgm", "fused.pgm", 2], "THREADS"),
        ([".", "a.pgm", "a.pgm", "fused.pgm", 2, "fp16"], "PRECISION"),
        (["a.pgm", "a.pgm", "a.pgm", "fused.pgm"], "a.pgm: "),
        ([cut, "a.pgm", "a.pgm", "fused.pgm"], "cut.safetensors: the parameter"),
        ([odd, "a.pgm", "a.pgm", "fused.pgm"], "odd.safetensors: the network fast"),
        ([WEIGHTS], "fuse_pgm ENGINE"),
        ([WEIGHTS, "a.pgm", "a.pgm", "no/such/folder.pgm"], "no/such/folder.pgm"),
    ):
        done = run(fuse_pgm, *words)
        assert done.returncode == 1, words
        assert message in done.stderr, words
        assert len(done.stderr.splitlines()) == 1, words
    assert not Path("fused.pgm").exists()


def test_eight_bits_are_those_of_python(library: Any, rng: np.random.Generator) -> None:
    fused = (rng.random((31, 47)) * 0.8 + 0.1).astype(np.float32)
    fused[3, 4:7] = 0.0, 1.0, 0.5
    narrow = fused * np.float32(0.1)
    for plane in (fused, fused / 4, np.full_like(fused, 0.25), narrow, narrow + np.float32(0.45), 1 - narrow):
        for output_range in OUTPUT_RANGES:
            picture = np.full(plane.shape, 77, np.uint8)
            assert library.to_uint8(*passed(plane), *plane.shape, output_range == "stretch", *passed(picture)) == 0
            assert np.array_equal(picture, merge(to_output_range(plane, output_range), None)), output_range
