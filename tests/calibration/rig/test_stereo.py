"""Calibration files of OpenCV: homographies as geometry has them, and every flaw named."""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.stereo import align_calibration, read_calibration
from refusion_edge.calibration.rig.storage import read_storage, to_matrix, to_number
from refusion_edge.errors import InputError
from refusion_edge.rig.warp import warp_points
from tests.conftest import one_sentence
from tests.raising import raises

FACTS: dict[str, Array | float] = {
    "M1": np.array([[520.0, 0, 319.5], [0, 521, 255.5], [0, 0, 1]]),
    "D1": np.array([[-0.3, 0.1, 0.001, -0.001, 0.0]]),
    "M2": np.array([[700.0, 0, 330], [0, 702, 240], [0, 0, 1]]),
    "D2": np.zeros((1, 5)),
    "R": np.asarray(cv2.Rodrigues(np.array([0.01, -0.02, 0.005]))[0]),
    "T": np.array([[-35.0], [1.0], [2.0]]),
    "rms": 0.31,
}
SIZES = ((640, 512), (640, 480))


def write(name: str, **changes: Array | float | None) -> Path:
    store = cv2.FileStorage(name, cv2.FILE_STORAGE_WRITE)
    for key, value in (FACTS | changes).items():
        if value is not None:
            store.write(key, value)
    store.release()
    return Path(name)


@pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
@pytest.mark.parametrize("base", ["ir", "vis"])
def test_points_of_a_plane_land_where_both_cameras_see_them(rng: np.random.Generator, suffix: str, base: str) -> None:
    calibration = read_calibration([write(f"stereo.{suffix}")], unit_m=0.001)
    sources, alignments, parallax = align_calibration(
        calibration, SIZES, [math.inf, 2.0, 5.0], first="ir", base="vis" if base == "vis" else "ir"
    )
    assert [alignment.distance_m for alignment in alignments] == [2.0, 5.0, math.inf]
    assert (sources["ir"].size_wh, sources["vis"].size_wh) == SIZES
    assert sources["ir"].lens is not None
    assert sources["ir"].lens.distortion == (-0.3, 0.1, 0.001, -0.001, 0.0)
    assert parallax.baseline_m == pytest.approx(math.hypot(35, 1, 2) / 1000)
    assert {alignment.error_px for alignment in alignments} == {0.31}
    rotation, translation = np.asarray(FACTS["R"]), np.asarray(FACTS["T"]).ravel() / 1000
    for alignment in alignments[:2]:
        assert alignment.distance_m is not None
        plane = np.column_stack((rng.uniform(-0.5, 0.5, (20, 2)), np.full(20, alignment.distance_m)))
        if base == "vis":  # the plane is parallel to the base sensor
            in_vis, in_ir = plane, (plane - translation) @ rotation
        else:
            in_ir, in_vis = plane, plane @ rotation.T + translation
        pixels = {}
        for name, points, key in (("ir", in_ir, "M1"), ("vis", in_vis, "M2")):
            seen = points @ np.asarray(FACTS[key]).T
            pixels[name] = seen[:, :2] / seen[:, 2:]
        moving = "ir" if base == "vis" else "vis"
        np.testing.assert_allclose(warp_points(alignment.matrix, pixels[base]), pixels[moving], atol=1e-6)


def test_intrinsics_and_extrinsics_may_be_two_files() -> None:
    both = [write("in.yml", R=None, T=None, rms=None), write("ex.yml", M1=None, D1=None, M2=None, D2=None, rms=None)]
    calibration = read_calibration(both, unit_m=0.001)
    assert calibration.error_px is None
    _, alignments, _ = align_calibration(calibration, SIZES, [math.inf], first="vis", base="vis")
    assert alignments[0].error_px is None
    assert "not measured" in alignments[0].error_method


@pytest.mark.parametrize(
    ("changes", "named", "remedy"),
    [
        ({"R": None}, "rotation (R)", ""),
        ({"M1": None, "D2": None}, "matrix of camera 1", ""),
        ({"R": np.eye(3) * 2}, "R in stereo.yml", ""),
        ({"R": np.diag([1.0, 1, -1])}, "R in stereo.yml", ""),
        ({"T": np.zeros((2, 1))}, "T in stereo.yml", ""),
        ({"T": np.array([[np.nan], [0], [0]])}, "T in stereo.yml", ""),
        ({"T": np.array([[35000.0], [0], [0]])}, "35 m", "--unit mm"),
        ({"M1": np.eye(4)}, "3x3", ""),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(changes: dict[str, Array | None], named: str, remedy: str) -> None:
    with raises(InputError, named, remedy=remedy):
        read_calibration([write("stereo.yml", **changes)], unit_m=0.001)


MATRIX = "M1: !!opencv-matrix\n   rows: {rows}\n   cols: {cols}\n   dt: {dt}\n   data: {data}\n"
ENTITIES = "".join(f'<!ENTITY a{n} "&a{n - 1};&a{n - 1};&a{n - 1};&a{n - 1};">' for n in range(1, 16))


def matrix(rows: str = "3", cols: str = "3", dt: str = "d", data: str = "[ 1, 0, 0, 0, 1, 0, 0, 0, 1 ]") -> bytes:
    return ("%YAML:1.0\n---\n" + MATRIX.format(rows=rows, cols=cols, dt=dt, data=data)).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"hello",
        b"%YAML:1.0\n---\n[1, 2]\n",
        b"\x00\xff",
        b"<?xml?><a>",
        b'{"a":' * 10_000,
        b"[" * 100_000,
        b"<opencv_storage>" + b"<a>" * 10_000,
        b"<opencv_storage>" + b"<a>" * 100 + b"</a>" * 100 + b"</opencv_storage>",
        b"<opencv_storage><M1>1</M1><M1>2</M1></opencv_storage>",
        b"<other/>",
        f'<!DOCTYPE a [<!ENTITY a0 "x">{ENTITIES}]><opencv_storage><M1>&a15;</M1></opencv_storage>'.encode(),
        b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><opencv_storage><M1>&e;</M1></opencv_storage>',
        b"<opencv_storage><M1 type_id='opencv-matrix'><rows>2000000000</rows><cols>3</cols><dt>d</dt><data>1</data></M1>"
        b"</opencv_storage>",
        b"M1: &a [1]\nM2: *a\n",
        b"M1: !!python/name:os.system\n",
        matrix(rows="2000000000"),
        matrix(rows="-3"),
        matrix(rows="[3]"),
        matrix(rows="1" * 5000),
        matrix(dt="z"),
        matrix(dt="9999d"),
        matrix(dt="[d]"),
        matrix(data="{}"),
        matrix(data="[" + "1, " * 100_000 + "1]"),
        matrix(data="[ [1], 0, 0, 0, 1, 0, 0, 0, 1 ]"),
        matrix(data="[ true, 0, 0, 0, 1, 0, 0, 0, 1 ]"),
        b"%YAML:1.0\n---\nM1: !!opencv-sparse-matrix\n   sizes: [ 3, 3 ]\n   dt: d\n   data: [ 0, 0, 1. ]\n",
        b"%YAML:1.0\n---\nM1: !!opencv-nd-matrix\n   sizes: [ 3, 3, 3 ]\n   dt: d\n   data: [ 0 ]\n",
    ],
)
def test_what_is_no_calibration_is_refused(text: bytes) -> None:
    Path("stereo.yml").write_bytes(text)
    with pytest.raises(InputError) as caught:
        read_calibration([Path("stereo.yml")])
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "sparse"])
def test_a_calibration_is_a_regular_file_of_its_size(kind: str) -> None:
    path = Path("stereo.yml")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 34)
    with pytest.raises(InputError) as caught:
        read_calibration([path])
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("suffix", ["yml", "xml", "json"])
def test_everything_that_opencv_writes_is_read_with_the_same_values(suffix: str) -> None:
    """OpenCV reads the files that it has written itself, as the second opinion."""
    name = f"all.{suffix}"
    store = cv2.FileStorage(name, cv2.FILE_STORAGE_WRITE)
    matrices = {
        "large": np.array([[1e22, 1e-5, -0.1], [2.0**-1074, 1 / 3, 5e300]]),
        "special": np.array([[np.inf, -np.inf, 0.0]]),
        "bytes": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "floats": np.array([[0.1, 1e-20]], np.float32),
        "two": np.arange(6.0).reshape(3, 1, 2),
    }
    for key, value in matrices.items():
        store.write(key, value)
    store.write("rms", 1e-7)
    store.write("count", 20)
    store.write("text", 'it\'s <x> & "y", 100 %: [1]')
    store.writeComment("a remark")
    store.startWriteStruct("list", cv2.FileNode_SEQ)
    for value in (1.0, -2.5, 1e-9):
        store.write("", value)
    store.endWriteStruct()
    store.startWriteStruct("map", cv2.FileNode_MAP)
    store.write("inner", 3.0)
    store.endWriteStruct()
    store.write("volume", np.zeros((2, 2, 2, 2)))
    store.release()
    found = read_storage(Path(name))
    for key, value in matrices.items():
        made = to_matrix(found[key], key)
        assert made is not None
        assert np.array_equal(made, value.astype(np.float64)), key
    assert to_number(found["rms"]) == 1e-7
    assert to_number(found["count"]) == 20
    listed = to_matrix(found["list"], "list")
    assert listed is not None
    assert listed.tolist() == [1.0, -2.5, 1e-9]
