"""Reading and writing ``.rfx`` program files; the format is described in docs/program_file.md. NumPy only.

    0   8  magic  89 52 46 58 0D 0A 1A 0A
    8   4  version of the header, 1          little-endian, like all numbers
    12  4  zero
    16  8  length of the manifest in bytes
    24  8  length of the file in bytes
    32 32  SHA-256 of the manifest
    64     manifest, JSON in UTF-8; then blobs, each at a multiple of 256, zeros between

Kernels are compressed with zlib (RFC 1950); weights and images, which would hardly shrink, are not.

A file may come from anywhere, so nothing in it is trusted: every blob has a hash, and every name, type, length, launch and
lifetime is checked before a device sees it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import (
    POINTER_TYPES,
    Argument,
    Binary,
    Buffer,
    Kernel,
    Launch,
    Parameter,
    Program,
    Schedule,
    SelfTest,
    Target,
    Tile,
    aligned,
    with_lifetimes,
)
from refusion_edge.documents import parse_json, shown
from refusion_edge.errors import BundleError

SCHEMA = "refusion-edge/program/2"
MAGIC = b"\x89RFX\r\n\x1a\n"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQ32s")

_MOST_STREAMS = 2
_MOST_SHARED_BYTES = 232_448  # what one program may have on sm_90, the most of any architecture
_MOST_ELEMENTS = 1 << 20  # for each pixel or strip, or fixed
_LONGEST_SELF_TEST_SIDE = 256
_LONGEST_BLOB = 1 << 25  # before compression
# A program of ours has 0.7 MB for two architectures, 35 kB of them manifest: 16 kernels, 26 buffers, 25 launches, 9 arguments.
MOST_BYTES = 64 << 20
_MOST_MANIFEST_BYTES = 4 << 20
_MOST_BLOB_BYTES = 128 << 20  # in all, before compression
_MOST_ENTRIES = {
    "blobs": 2048, "kernels": 256, "buffers": 1024, "launches": 2048, "arguments": 64, "parameters": 64, "arrays": 1024,
    "targets": 64,
}  # fmt: skip
_MOST_DIMENSIONS = 8
_MOST_CONSTANTS = 256
_ENCODINGS = ("none", "zlib")

_ARGUMENT_KINDS: dict[str, Literal["buffer", "weights", "size", "strips"]] = {
    "buffer": "buffer",
    "weights": "weights",
    "size": "size",
    "strips": "strips",
}

Value = TypeVar("Value")


def program_bytes(program: Program) -> bytes:
    """Write a program; equal programs give equal bytes."""
    blobs: list[bytes] = []
    entries: list[dict[str, Any]] = []

    def blob(data: bytes, encoding: str = "none") -> int:
        stored = zlib.compress(data, 9) if encoding == "zlib" else data
        blobs.append(stored)
        digest = hashlib.sha256(stored).hexdigest()
        entries.append({"size": len(stored), "sha256": digest, "encoding": encoding, "length": len(data)})
        return len(blobs) - 1

    packed, weights = _pack(program.weights)
    test = program.self_test
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "model": dict(sorted(program.model.items())),
        "kernels": [asdict(kernel) for kernel in program.schedule.kernels.values()],
        "buffers": [asdict(buffer) for buffer in program.schedule.buffers.values()],
        "launches": [asdict(launch) for launch in program.schedule.launches],
        "weights": {"blob": blob(packed), "arrays": weights},
        "self_test": {
            "height": test.fused.shape[0],
            "width": test.fused.shape[1],
            "tolerance": test.tolerance,
            "planes": blob(test.planes.astype("<f4").tobytes()),
            "fused": blob(test.fused.astype("<f4").tobytes()),
        },
        "targets": [
            {
                "architecture": target.architecture,
                "driver_version": target.driver_version,
                "kernels": {
                    name: {
                        "symbol": binary.symbol,
                        "tile": asdict(binary.tile),
                        "shared_bytes": binary.shared_bytes,
                        "hidden_pointers": binary.hidden_pointers,
                        "blob": blob(binary.image, "zlib"),
                    }
                    for name, binary in target.binaries.items()
                },
            }
            for target in program.targets.values()
        ],
    }
    manifest["blobs"] = entries
    text = json.dumps(manifest, separators=(",", ":"), allow_nan=False).encode()
    body = b"".join(_padded(part) for part in (bytes(_HEADER.size) + text, *blobs))
    header = _HEADER.pack(MAGIC, _VERSION, 0, len(text), len(body), hashlib.sha256(text).digest())
    return header + body[_HEADER.size :]


def parse_program(data: bytes, name: str = "the program file") -> Program:
    """Read a program and check everything in it.

    Args:
        data: The bytes of the file.
        name: What to call it in messages.

    Raises:
        BundleError: It is not a program file, was changed or truncated, has another version, or contradicts itself.
    """
    return _Reader(name).program(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(aligned(len(data)) - len(data))


def _pack(weights: Mapping[str, Array]) -> tuple[bytes, list[dict[str, Any]]]:
    parts, entries, offset = [], [], 0
    for name, array in weights.items():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        entries.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "offset": offset})
        parts.append(_padded(little.tobytes()))
        offset += len(parts[-1])
    return b"".join(parts), entries


class _Reader:
    """Turns JSON into a program and refuses whatever does not fit.

    Args:
        name: What to call the file in messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._blobs: list[bytes] = []

    def program(self, data: bytes) -> Program:
        manifest = self._manifest(data)
        self._require(manifest.get("schema") == SCHEMA, f"the schema {SCHEMA}", shown(manifest.get("schema")), unknown=True)
        model = self._get(manifest, "model", dict)
        self._require(all(isinstance(text, str) for text in model.values()), "texts in the field model", "something else")
        weights = self._weights(self._get(manifest, "weights", dict))
        schedule = self._schedule(manifest)
        self._check_launches(schedule, weights)
        targets = [self._target(fields, schedule) for fields in self._list(manifest, "targets")]
        self._unique([str(target.architecture) for target in targets], "targets")
        test = self._self_test(self._get(manifest, "self_test", dict))
        return Program(model, schedule, weights, {target.architecture: target for target in targets}, test)

    def _manifest(self, data: bytes) -> dict[str, Any]:
        if len(data) < _HEADER.size or data[:8] != MAGIC:
            self._refuse("a program file (.rfx)", f"{len(data)} bytes of something else")
        _, version, zero, length, size, digest = _HEADER.unpack_from(data)
        self._require(version == _VERSION, f"version {_VERSION} of the header", str(version), unknown=True)
        self._require(size == len(data), f"a file of {size} bytes", f"{len(data)} bytes")
        most = MOST_BYTES, _MOST_MANIFEST_BYTES
        self._require(size <= most[0] and length <= most[1], f"at most {most[0]} bytes and {most[1]} of them manifest", "more")
        end = _HEADER.size + length
        self._require(zero == 0 and end <= size, "a valid header", "a damaged one")
        text = data[_HEADER.size : end]
        self._require(hashlib.sha256(text).digest() == digest, "the original manifest", "a changed one")
        manifest = parse_json(text, f"the manifest of {self._name}", error=BundleError)
        self._require(isinstance(manifest, dict), "an object in the manifest", type(manifest).__name__)
        fields: dict[str, Any] = manifest
        self._split(data, end, self._list(fields, "blobs"))
        return fields

    def _split(self, data: bytes, end: int, entries: list[dict[str, Any]]) -> None:
        """Read the blobs, each behind the one before it."""
        # All of them before the first is unpacked.
        total = sum(self._number(entry, "length", 1, _LONGEST_BLOB) for entry in entries)
        self._require(total <= _MOST_BLOB_BYTES, f"blobs of at most {_MOST_BLOB_BYTES} bytes in all", str(total))
        for index, entry in enumerate(entries):
            start = aligned(end)
            size = self._number(entry, "size", 1, len(data))
            blob = data[start : start + size]
            self._require(not any(data[end:start]), "zeros between the blobs", "something else")
            found = hashlib.sha256(blob).hexdigest()
            if found != self._get(entry, "sha256", str):
                self._refuse(f"the SHA-256 {shown(entry['sha256'][:12])}... of blob {index}", f"{found[:12]}...")
            self._blobs.append(self._decoded(entry, blob, f"blob {index}"))
            end = start + size
        self._require(aligned(end) == len(data) and not any(data[end:]), "the end of the file", "more bytes or fewer")

    def _decoded(self, entry: dict[str, Any], stored: bytes, what: str) -> bytes:
        length = self._number(entry, "length", 1, _LONGEST_BLOB)
        if self._choice(entry, "encoding", _ENCODINGS) == "none":
            data, whole = stored, True
        else:
            decoder = zlib.decompressobj()
            try:
                # Never more than the stated length, however much the stream would yield.
                data = decoder.decompress(stored, length)
            except zlib.error as error:
                self._refuse(f"zlib data in {what}", f"something else ({error})")
            whole = decoder.eof and not decoder.unused_data
        self._require(whole and len(data) == length, f"{length} bytes of {what}", "more or fewer")
        return data

    def _schedule(self, manifest: dict[str, Any]) -> Schedule:
        kernels = [self._kernel(fields) for fields in self._list(manifest, "kernels")]
        self._unique([kernel.name for kernel in kernels], "kernels")
        by_name = {kernel.name: kernel for kernel in kernels}
        buffers = [self._buffer(fields, by_name) for fields in self._list(manifest, "buffers")]
        self._unique([buffer.name for buffer in buffers], "buffers")
        launches = tuple(
            Launch(
                self._get(fields, "kernel", str),
                tuple(self._argument(argument) for argument in self._list(fields, "arguments")),
            )
            for fields in self._list(manifest, "launches")
        )
        return Schedule(by_name, {buffer.name: buffer for buffer in buffers}, launches)

    def _kernel(self, fields: dict[str, Any]) -> Kernel:
        parameters = tuple(
            Parameter(
                self._get(parameter, "name", str),
                self._choice(parameter, "type", ("int32", *POINTER_TYPES)),
                self._get(parameter, "written", bool),
            )
            for parameter in self._list(fields, "parameters")
        )
        self._unique([parameter.name for parameter in parameters], "parameters")
        constants = self._get(fields, "constants", dict)
        sound = len(constants) <= _MOST_CONSTANTS and all(type(value) is int for value in constants.values())
        self._require(sound, f"at most {_MOST_CONSTANTS} integer constants", "others")
        grid = self._choice(fields, "grid", ("strips", "streams"))
        streams = self._number(fields, "streams", 1, _MOST_STREAMS)
        name, source = self._get(fields, "name", str), self._get(fields, "source", str)
        return Kernel(name, source, parameters, constants, "strips" if grid == "strips" else "streams", streams)

    def _buffer(self, fields: dict[str, Any], kernels: Mapping[str, Kernel]) -> Buffer:
        strips_of = self._get(fields, "strips_of", str)
        per_strip = self._number(fields, "per_strip", 0, _MOST_ELEMENTS)
        self._require((per_strip > 0) == (strips_of in kernels), "strips of a kernel for a buffer", shown(strips_of))
        role = self._choice(fields, "role", ("input", "output", "scratch"))
        return Buffer(
            self._get(fields, "name", str),
            self._choice(fields, "dtype", tuple(dtype.name for dtype in POINTER_TYPES.values())),
            "input" if role == "input" else "output" if role == "output" else "scratch",
            self._number(fields, "per_pixel", 0, _MOST_ELEMENTS),
            per_strip,
            strips_of,
            self._number(fields, "fixed", 0, _MOST_ELEMENTS),
            self._number(fields, "first", 0, _MOST_ELEMENTS),
            self._number(fields, "last", 0, _MOST_ELEMENTS),
        )

    def _argument(self, fields: dict[str, Any]) -> Argument:
        kind, name = self._get(fields, "kind", str), self._get(fields, "name", str)
        self._require(kind in _ARGUMENT_KINDS, f"one of {', '.join(_ARGUMENT_KINDS)} for an argument", shown(kind))
        return Argument(_ARGUMENT_KINDS[kind], name)

    def _check_launches(self, schedule: Schedule, weights: Mapping[str, Array]) -> None:
        """Check that every argument has the type of its parameter and that nothing is read before it was written."""
        written = {name for name, buffer in schedule.buffers.items() if buffer.role == "input"}
        for index, launch in enumerate(schedule.launches):
            kernel = schedule.kernels.get(launch.kernel)
            if kernel is None or len(kernel.parameters) != len(launch.arguments):
                self._refuse(f"a kernel and its arguments in launch {index}", shown(launch.kernel))
            for parameter, argument in zip(kernel.parameters, launch.arguments, strict=True):
                where = f"{shown(parameter.name)} of launch {index}"
                found = self._type(schedule, weights, argument)
                self._require(found == parameter.type, f"{parameter.type} for {where}", f"{found} ({shown(argument.name)})")
                if argument.kind == "buffer" and not parameter.written:
                    self._require(
                        argument.name in written, f"the contents of {shown(argument.name)} for {where}", "nothing yet"
                    )
                may_write = argument.kind == "buffer" and schedule.buffers[argument.name].role != "input"
                self._require(
                    may_write or not parameter.written, f"memory that may be written for {where}", shown(argument.name)
                )
            pairs = zip(kernel.parameters, launch.arguments, strict=True)
            written |= {argument.name for parameter, argument in pairs if parameter.written}
        self._require(written == set(schedule.buffers), "launches that write every buffer", "others")
        lifetimes = with_lifetimes(schedule.buffers.values(), schedule.launches) if self._all_used(schedule) else {}
        self._require(lifetimes == schedule.buffers, "the lifetimes that follow from the launches", "others")

    def _all_used(self, schedule: Schedule) -> bool:
        used = {argument.name for launch in schedule.launches for argument in launch.arguments if argument.kind == "buffer"}
        return used == set(schedule.buffers)

    def _type(self, schedule: Schedule, weights: Mapping[str, Array], argument: Argument) -> str:
        """The parameter type that an argument fits, or an empty string if its name is unknown."""
        if argument.kind == "buffer":
            return f"{schedule.buffers[argument.name].dtype}*" if argument.name in schedule.buffers else ""
        if argument.kind == "weights":
            return f"{weights[argument.name].dtype.name}*" if argument.name in weights else ""
        known = ("height", "width") if argument.kind == "size" else tuple(schedule.kernels)
        return "int32" if argument.name in known else ""

    def _weights(self, fields: dict[str, Any]) -> dict[str, Array]:
        packed = self._blob(fields, "blob")
        arrays: dict[str, Array] = {}
        entries = self._list(fields, "arrays")
        self._unique([self._get(entry, "name", str) for entry in entries], "weights")
        end = 0
        for entry in entries:
            dtype = np.dtype(self._choice(entry, "dtype", tuple(dtype.name for dtype in POINTER_TYPES.values())))
            shape = self._get(entry, "shape", list)
            sound = len(shape) <= _MOST_DIMENSIONS and all(type(side) is int and 0 < side <= _MOST_ELEMENTS for side in shape)
            self._require(sound, "a shape", shown(shape))
            offset, count = self._number(entry, "offset", 0, len(packed)), math.prod(shape)
            # One behind the other: a thousand weights at one place would take a thousand times the memory of their blob.
            fits = offset == aligned(end) and offset + count * dtype.itemsize <= len(packed)
            self._require(
                fits, f"the weights {shown(entry['name'])} behind those before, within their blob", "another offset or shape"
            )
            end = offset + count * dtype.itemsize
            flat = np.frombuffer(packed, dtype.newbyteorder("<"), count, offset)
            self._require(
                dtype.kind != "f" or bool(np.isfinite(flat).all()), "finite weights", f"others in {shown(entry['name'])}"
            )
            arrays[entry["name"]] = flat.astype(dtype).reshape(shape)
        return arrays

    def _target(self, fields: dict[str, Any], schedule: Schedule) -> Target:
        architecture = self._number(fields, "architecture", 10, 999)
        kernels = self._get(fields, "kernels", dict)
        self._require(kernels.keys() == schedule.kernels.keys(), f"every kernel for sm_{architecture}", "others")
        binaries = {}
        for name in schedule.kernels:
            entry = self._get(kernels, name, dict)
            binaries[name] = Binary(
                self._get(entry, "symbol", str),
                self._tile(self._get(entry, "tile", dict)),
                self._number(entry, "shared_bytes", 0, _MOST_SHARED_BYTES),
                self._number(entry, "hidden_pointers", 0, 4),
                self._blob(entry, "blob"),
            )
        return Target(architecture, self._number(fields, "driver_version", 0, 1_000_000), binaries)

    def _tile(self, fields: dict[str, Any]) -> Tile:
        columns, warps = self._number(fields, "columns", 16, 256), self._number(fields, "warps", 1, 32)
        self._require(not warps & warps - 1, "a power of two for the warps of a tile", str(warps))
        return Tile(columns, self._number(fields, "rows", 1, 1024), warps)

    def _self_test(self, fields: dict[str, Any]) -> SelfTest:
        height, width = (self._number(fields, side, 8, _LONGEST_SELF_TEST_SIDE) for side in ("height", "width"))
        tolerance = self._get(fields, "tolerance", float)
        self._require(0 < tolerance <= 0.1, "a tolerance of at most 0.1 for the self-test", str(tolerance))
        planes, fused = self._blob(fields, "planes"), self._blob(fields, "fused")
        right = len(planes) == 8 * height * width and len(fused) == 4 * height * width
        self._require(right, f"images of {height}x{width} for the self-test", "others")
        images = [np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, height, width) for data in (planes, fused)]
        return SelfTest(images[0], images[1][0], tolerance)

    def _blob(self, fields: dict[str, Any], key: str) -> bytes:
        return self._blobs[self._number(fields, key, 0, len(self._blobs) - 1)]

    def _get(self, fields: dict[str, Any], key: str, kind: type[Value]) -> Value:
        value = fields.get(key) if isinstance(fields, dict) else None
        # By exact type: a truth value is not a number here.
        if type(value) is not kind:
            self._refuse(f"{kind.__name__} in the field {key}", type(value).__name__)
        return value

    def _list(self, fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
        entries = self._get(fields, key, list)
        self._require(len(entries) <= _MOST_ENTRIES[key], f"at most {_MOST_ENTRIES[key]} {key}", str(len(entries)))
        self._require(bool(entries) and all(isinstance(entry, dict) for entry in entries), f"objects in {key}", "others")
        return entries

    def _number(self, fields: dict[str, Any], key: str, least: int, most: int) -> int:
        value = self._get(fields, key, int)
        self._require(least <= value <= most, f"{least} to {most} in the field {key}", str(value)[:60])
        return value

    def _choice(self, fields: dict[str, Any], key: str, choices: tuple[str, ...]) -> str:
        value = self._get(fields, key, str)
        self._require(value in choices, f"one of {', '.join(choices)} in the field {key}", shown(value))
        return value

    def _unique(self, names: list[str], what: str) -> None:
        self._require(len(set(names)) == len(names), f"{what} with different names", "one twice")

    def _require(self, sound: bool, due: str, found: str, *, unknown: bool = False) -> None:
        if not sound:
            self._refuse(due, found, unknown=unknown)

    def _refuse(self, due: str, found: str, *, unknown: bool = False) -> NoReturn:
        remedy = "build it again with this version of refusion-edge, or install the version that built it"
        problem = f"{self._name} has {found} where {due} should be"
        raise BundleError(problem, remedy if unknown else "build it again", expected=due, got=found)
