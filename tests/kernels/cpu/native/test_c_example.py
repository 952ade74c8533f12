"""The C interface and its example: built, run, and equal to Python."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.accuracy.gate import compare
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.backends.registry import status
from refusion_edge.fuser import load
from refusion_edge.images.color import OUTPUT_RANGES, merge, to_output_range
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.network import fast
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.weights import weights_path
from tests.conftest import ROOT, TOLERANCE, one_sentence
from tests.oracles import fast as fast_oracle

# Building takes most of a minute, in every worker.
pytestmark = pytest.mark.slow

WEIGHTS = weights_path("ir_vis")


@pytest.fixture(scope="module")
def fuse_pgm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built from source."""
    if shutil.which("cmake") is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs cmake and a C++ compiler")
    folder = tmp_path_factory.mktemp("c")
    options = ["-DREFUSION_EDGE_PYTHON=OFF", "-DREFUSION_EDGE_LIBRARY=ON"]
    make, compile_all = (
        ["cmake", "-S", str(ROOT), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    )
    for command in (make, compile_all):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr
    return folder / "fuse_pgm"


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


def test_the_example_fuses_what_python_fuses(fuse_pgm: Path) -> None:
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


@pytest.fixture
def fast_weights() -> Path:
    path = Path("fast.safetensors").resolve()
    write_safetensors(path, Checkpoint("ir_vis", fast_oracle.random_state(fast.FastLayout())))
    return path


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


def test_statistics_are_taken_and_given(fuse_pgm: Path, fast_weights: Path, rng: np.random.Generator) -> None:
    library = ctypes.CDLL(str(fuse_pgm.parent / "librefusion_edge.so"))
    library.refusion_edge_create.restype = ctypes.c_void_p
    for text in ("error", "network", "isa"):
        getattr(library, f"refusion_edge_{text}").restype = ctypes.c_char_p
    a, b = rng.random((2, 45, 67), np.float32)
    sides = [ctypes.c_int(side) for side in a.shape]

    def passed(plane: Array) -> tuple[ctypes.c_void_p, ctypes.c_ssize_t]:
        return ctypes.c_void_p(plane.ctypes.data), ctypes.c_ssize_t(plane.strides[0])

    def fused(engine: ctypes.c_void_p, figures: Array | None) -> Float32Array | None:
        result = np.full_like(a, np.nan)
        address = ctypes.c_void_p(None if figures is None else figures.ctypes.data)
        failed = library.refusion_edge_fuse_adapted(engine, *passed(a), *passed(b), *sides, address, *passed(result))
        return None if failed else result

    state = read_checkpoint(fast_weights).state
    engine = ctypes.c_void_p(library.refusion_edge_create(str(fast_weights).encode(), ctypes.c_int(2), ctypes.c_int(0)))
    assert library.refusion_edge_network(engine) == b"fast"
    assert library.refusion_edge_isa(engine) != b""
    figures = np.zeros(fast.STATISTICS)
    address = ctypes.c_void_p(figures.ctypes.data)
    assert library.refusion_edge_statistics(engine, *passed(a), *passed(b), *sides, address) == 0
    assert np.allclose(figures, fast.statistics(a, b), rtol=0, atol=1e-12)
    own, given, before = fused(engine, None), fused(engine, figures), fused(engine, figures * 0.5)
    assert own is not None
    assert given is not None
    assert np.array_equal(own, given)
    assert np.abs(before - fast.reference(state, a, b, figures * 0.5)).max() <= TOLERANCE["fp32"]
    assert fused(engine, figures * np.nan) is None
    assert b"statistics" in library.refusion_edge_error()
    library.refusion_edge_destroy(engine)

    assert library.refusion_edge_create(str(fast_weights).encode(), ctypes.c_int(2), ctypes.c_int(1)) is None
    assert b"network fast does not compute in bf16" in library.refusion_edge_error()
    paper = ctypes.c_void_p(library.refusion_edge_create(str(WEIGHTS).encode(), ctypes.c_int(2), ctypes.c_int(0)))
    assert library.refusion_edge_network(paper) == b"refusion"
    assert fused(paper, None) is not None
    for refused in (
        fused(paper, figures) is None,
        library.refusion_edge_statistics(paper, *passed(a), *passed(b), *sides, address) != 0,
    ):
        assert refused
        assert one_sentence(library.refusion_edge_error().decode())
    library.refusion_edge_destroy(paper)


def test_the_precision_is_named_in_the_call(fuse_pgm: Path, rng: np.random.Generator) -> None:
    library = ctypes.CDLL(str(fuse_pgm.parent / "librefusion_edge.so"))
    library.refusion_edge_create.restype = ctypes.c_void_p
    library.refusion_edge_error.restype = ctypes.c_char_p
    a, b = (rng.random((45, 67), np.float32) for _ in range(2))

    def fused_in(precision: int) -> Float32Array | None:
        engine = library.refusion_edge_create(str(WEIGHTS).encode(), ctypes.c_int(2), ctypes.c_int(precision))
        if engine is None:
            return None
        fused = np.full_like(a, np.nan)
        planes = [(ctypes.c_void_p(plane.ctypes.data), ctypes.c_ssize_t(plane.strides[0])) for plane in (a, b, fused)]
        sides = [ctypes.c_int(side) for side in a.shape]
        assert library.refusion_edge_fuse(ctypes.c_void_p(engine), *planes[0], *planes[1], *sides, *planes[2]) == 0
        library.refusion_edge_destroy(ctypes.c_void_p(engine))
        return fused

    exact, rounded = fused_in(0), fused_in(1)
    assert exact is not None
    if rounded is None:
        assert b"bf16" in library.refusion_edge_error()
    else:
        assert 50 < compare(rounded, exact).psnr_db < 75
    assert fused_in(2) is None
    assert one_sentence(library.refusion_edge_error().decode())


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
    for words, message in (
        ([WEIGHTS, "a.pgm", "other.pgm", "fused.pgm"], "different sizes"),
        ([WEIGHTS, "narrow.pgm", "narrow.pgm", "fused.pgm"], "7x16 (width x height)"),
        ([WEIGHTS, "a.png", "a.pgm", "fused.pgm"], "a.png"),
        ([WEIGHTS, "a.pgm", "a.pgm", "fused.pgm", 0], "0 threads"),
        (["nowhere", "a.pgm", "a.pgm", "fused.pgm"], "nowhere: it cannot be read"),
        (["a.pgm", "a.pgm", "a.pgm", "fused.pgm"], "a.pgm: "),
        ([cut, "a.pgm", "a.pgm", "fused.pgm"], "cut.safetensors: the parameter"),
        ([odd, "a.pgm", "a.pgm", "fused.pgm"], "odd.safetensors: the network fast"),
        ([WEIGHTS], "fuse_pgm WEIGHTS"),
        ([WEIGHTS, "a.pgm", "a.pgm", "no/such/folder.pgm"], "no/such/folder.pgm"),
    ):
        done = run(fuse_pgm, *words)
        assert done.returncode == 1, words
        assert message in done.stderr, words
        assert len(done.stderr.splitlines()) == 1, words
    assert not Path("fused.pgm").exists()


def test_eight_bits_are_those_of_python(fuse_pgm: Path, rng: np.random.Generator) -> None:
    library = ctypes.CDLL(str(fuse_pgm.parent / "librefusion_edge.so"))
    fused = (rng.random((31, 47)) * 0.8 + 0.1).astype(np.float32)
    fused[3, 4:7] = 0.0, 1.0, 0.5
    for plane in (fused, np.full_like(fused, 0.25)):
        for output_range in OUTPUT_RANGES:
            picture = np.full(plane.shape, 77, np.uint8)
            arguments = (plane.ctypes.data, plane.strides[0], *plane.shape, output_range == "stretch")
            addresses = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_int, ctypes.c_int)
            passed = [as_c(value) for as_c, value in zip(addresses, arguments, strict=True)]
            to = (ctypes.c_void_p(picture.ctypes.data), ctypes.c_ssize_t(picture.strides[0]))
            assert library.refusion_edge_to_uint8(*passed, *to) == 0
            assert np.array_equal(picture, merge(to_output_range(plane, output_range), None)), output_range
