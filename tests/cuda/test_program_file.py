"""Program files: what was written is what is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Program
from refusion_edge.cuda.program_file import MAGIC, parse_program, program_bytes
from refusion_edge.errors import BundleError
from tests.conftest import one_sentence
from tests.fakes.programs import hollow_program, stored_program


@pytest.fixture(scope="module")
def program(random_state: State) -> Program:
    return hollow_program(random_state, 87, 110)


@pytest.fixture(scope="module")
def data(program: Program) -> bytes:
    return program_bytes(program)


def refused(data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        parse_program(data, "x.rfx")
    message = str(caught.value)
    assert one_sentence(message)
    assert "x.rfx" in message
    return message


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with another manifest, its hashes and lengths made right again."""
    length = struct.unpack_from("<Q", data, 16)[0]
    manifest = json.loads(data[64 : 64 + length])
    sizes = [blob["size"] for blob in manifest["blobs"]]
    start, blobs = -(-(64 + length) // 256) * 256, []
    for size in sizes:
        blobs.append(data[start : start + size])
        start += -(-size // 256) * 256
    change(manifest)
    text = json.dumps(manifest).encode()
    body = bytes(64) + text
    for blob in blobs:
        body += bytes(-len(body) % 256) + blob
    body += bytes(-len(body) % 256)
    header = struct.pack("<8sIIQQ32s", MAGIC, 1, 0, len(text), len(body), hashlib.sha256(text).digest())
    return header + body[64:]


def test_what_is_read_is_what_was_written(program: Program, data: bytes) -> None:
    read = parse_program(data)
    assert read.schedule == program.schedule
    assert read.targets == program.targets
    assert read.model == program.model
    assert read.weights.keys() == program.weights.keys()
    for name, array in program.weights.items():
        assert read.weights[name].dtype == array.dtype
        assert np.array_equal(read.weights[name], array)
    assert np.array_equal(read.self_test.planes, program.self_test.planes)
    assert np.array_equal(read.self_test.fused, program.self_test.fused)
    assert program_bytes(read) == data
    assert parse_program(rewritten(data, lambda _: None)).schedule == program.schedule


def test_a_file_of_an_earlier_version_is_read_and_written_byte_for_byte() -> None:
    stored = stored_program()
    read = parse_program(stored)
    assert set(read.targets) == {87}
    assert program_bytes(read) == stored


def test_a_flipped_byte_is_seen_wherever_it_is(data: bytes, rng: np.random.Generator) -> None:
    length = struct.unpack_from("<Q", data, 16)[0]
    places = [*range(64), 64, 64 + length - 1, 64 + length, len(data) - 1, *rng.integers(0, len(data), 60).tolist()]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        refused(bytes(damaged))


@pytest.mark.parametrize("length", [0, 7, 63, 64, 1000, -256, -1])
def test_a_file_that_was_cut_short_is_refused(data: bytes, length: int) -> None:
    refused(data[:length])


def test_something_else_is_refused(data: bytes) -> None:
    refused(b"PK\x03\x04" * 50)
    assert f"{len(data) + 256} bytes" in refused(data + bytes(256))
    assert "version 1" in refused(data[:8] + b"\x02" + data[9:])
    packed = zlib.compress(b"stem for sm_87", 9)
    assert packed in data
    assert "SHA-256" in refused(data.replace(packed, zlib.compress(b"stem for sm_88", 9)))


def test_kernels_are_compressed_and_found_again(random_state: State) -> None:
    plain = hollow_program(random_state, 87)
    images = {name: name.encode() * 5000 for name in plain.schedule.kernels}
    binaries = {name: dataclasses.replace(one, image=images[name]) for name, one in plain.targets[87].binaries.items()}
    targets = {87: dataclasses.replace(plain.targets[87], binaries=binaries)}
    data = program_bytes(dataclasses.replace(plain, targets=targets))
    assert len(data) < len(program_bytes(plain)) + 256 * len(images)
    read = parse_program(data)
    assert {name: one.image for name, one in read.targets[87].binaries.items()} == images


@pytest.mark.parametrize("version", [1, 3])
def test_an_unknown_schema_is_refused(data: bytes, version: int) -> None:
    newer = rewritten(data, lambda manifest: manifest.update(schema=f"refusion-edge/program/{version}"))
    message = refused(newer)
    assert f"refusion-edge/program/{version}" in message
    assert "install" in message


def launch(manifest: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = manifest["launches"][index]
    return found


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no kernels": lambda m: m.update(kernels=[]),
    "a kernel twice": lambda m: m["kernels"].append(m["kernels"][0]),
    "two weights at one place": lambda m: m["weights"]["arrays"][1].update(offset=m["weights"]["arrays"][0]["offset"]),
    "a launch of nothing": lambda m: launch(m, 3).update(kernel="nothing"),
    "a launch without its last argument": lambda m: launch(m, 3)["arguments"].pop(),
    "a buffer that is none": lambda m: launch(m, 1)["arguments"][0].update(name="nothing"),
    "weights as a buffer": lambda m: launch(m, 1)["arguments"][0].update(kind="weights"),
    "a size that is none": lambda m: launch(m, 0)["arguments"][-1].update(name="depth"),
    "an argument of another type": lambda m: launch(m, 1)["arguments"][0].update(name="fused"),
    "an unknown kind of argument": lambda m: launch(m, 1)["arguments"][0].update(kind="file"),
    "launches in another order": lambda m: m["launches"].reverse(),
    "a launch left out": lambda m: m["launches"].pop(0),
    "writing into weights": lambda m: launch(m, 0)["arguments"][2].update(kind="weights", name="encoder.0.query"),
    "writing into the input": lambda m: launch(m, 23)["arguments"][2].update(name="planes"),
    "a life that ends too early": lambda m: m["buffers"][1].update(last=0),
    "a negative extent": lambda m: m["buffers"][1].update(per_pixel=-32),
    "an enormous extent": lambda m: m["buffers"][1].update(per_pixel=1 << 40),
    "a truth value for a number": lambda m: m["buffers"][1].update(per_pixel=True),
    "strips of nothing": lambda m: m["buffers"][1].update(per_strip=1, strips_of="nothing"),
    "an unused buffer": lambda m: m["buffers"].append({**m["buffers"][1], "name": "more"}),
    "an unknown dtype": lambda m: m["buffers"][1].update(dtype="object"),
    "weights beyond their blob": lambda m: m["weights"]["arrays"][-1].update(shape=[1 << 19]),
    "weights at a negative offset": lambda m: m["weights"]["arrays"][0].update(offset=-256),
    "weights at an odd offset": lambda m: m["weights"]["arrays"][1].update(offset=1),
    "a blob that is none": lambda m: m["weights"].update(blob=10_000),
    "a blob that is longer than the file": lambda m: m["blobs"][-1].update(size=1 << 50),
    "a blob in an unknown encoding": lambda m: m["blobs"][-1].update(encoding="gzip"),
    "a blob that is not compressed": lambda m: m["blobs"][0].update(encoding="zlib"),
    "a blob that holds more than it says": lambda m: m["blobs"][-1].update(length=3),
    "a blob that holds less than it says": lambda m: m["blobs"][-1].update(length=1000),
    "a blob that becomes enormous": lambda m: m["blobs"][-1].update(length=1 << 40),
    "a picture that holds less than it says": lambda m: m["blobs"][1].update(length=1000),
    "a tile of three warps": lambda m: m["targets"][0]["kernels"]["stem"]["tile"].update(warps=3),
    "no warps": lambda m: m["targets"][0]["kernels"]["stem"]["tile"].update(warps=0),
    "a kernel left out": lambda m: m["targets"][0]["kernels"].pop("stem"),
    "too much shared memory": lambda m: m["targets"][0]["kernels"]["stem"].update(shared_bytes=1 << 30),
    "an architecture twice": lambda m: m["targets"].append(m["targets"][0]),
    "a self-test that passes always": lambda m: m["self_test"].update(tolerance=1e9),
    "a self-test of another size": lambda m: m["self_test"].update(height=20),
    "an enormous self-test": lambda m: m["self_test"].update(height=1 << 30),
    "no model": lambda m: m.pop("model"),
    "a number for a text": lambda m: m["model"].update(task=3),
    "a text for a list": lambda m: m.update(launches="none"),
    "a list for an object": lambda m: m["targets"][0].update(kernels=[]),
    "a name of half a character": lambda m: m["model"].update(task="\ud800"),
    "a number that is infinite": lambda m: m["self_test"].update(tolerance=1e999),
    "a number of 1000 digits": lambda m: m["self_test"].update(height=10**1000),
    "a shape of 70 dimensions": lambda m: m["weights"]["arrays"][0].update(shape=[1] * 70),
    "400,000 shapes": lambda m: m["weights"].update(arrays=m["weights"]["arrays"][:1] * 400_000),
    "100,000 launches": lambda m: m.update(launches=m["launches"] * 4_000),
    "10,000 arguments": lambda m: launch(m, 0).update(arguments=launch(m, 0)["arguments"] * 5_000),
    "10,000 constants": lambda m: m["kernels"][0].update(constants={f"C{n}": n for n in range(10_000)}),
    "50,000 targets": lambda m: m.update(targets=[{}] * 50_000),
    "nesting": lambda m: m["model"].update(task=[[[[[[[[]]]]]]]] * 3),
}


LARGE = ("400,000 shapes", "100,000 launches")


@pytest.mark.parametrize("what", [pytest.param(what, marks=[pytest.mark.slow] * (what in LARGE)) for what in HOSTILE])
def test_a_manifest_that_lies_is_refused(data: bytes, what: str) -> None:
    refused(rewritten(data, HOSTILE[what]))


def test_many_blobs_that_become_large_are_refused_before_one_is_unpacked(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def enlarge(manifest: dict[str, Any]) -> None:
        for blob in manifest["blobs"]:
            blob.update(length=1 << 25)

    def unpack() -> None:
        pytest.fail("a blob was unpacked")

    monkeypatch.setattr(zlib, "decompressobj", unpack)
    refused(rewritten(data, enlarge))


def test_weights_that_are_no_numbers_are_refused(random_state: State) -> None:
    program = hollow_program(random_state, 87)
    program.weights["head.plane"][0, 0] = np.nan
    assert "finite weights" in refused(program_bytes(program))
