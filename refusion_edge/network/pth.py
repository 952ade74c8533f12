"""Official ``.pth`` files, read without torch and without ``pickle``.

A PyTorch checkpoint is a zip archive with a pickled dictionary and one raw file per tensor. Unpickling an untrusted file can
run code, and 150 bytes can allocate gigabytes. This reader interprets only the few instructions that a dictionary of tensors
needs, within limits, and refuses all others.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.documents import brief
from refusion_edge.errors import CheckpointError
from refusion_edge.text import printable

# The official files take 281 kB, including a dictionary of 25 kB: 6,500 instructions for 140 tensors.
MOST_BYTES = 4 << 20
_MOST_PICKLED_BYTES = 1 << 18
_MOST_INSTRUCTIONS = 50_000
_MOST_TENSORS = 1000
_MOST_DIMENSIONS = 8

_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "DoubleStorage": np.dtype("<f8"),
}


def read_pth(data: bytes, path: Path) -> dict[str, Array]:
    """Read a dictionary of float tensors from a ``.pth`` file.

    Args:
        data: Content of the file, a zip archive.
        path: Name of the file in messages.

    Raises:
        CheckpointError: It is damaged, too large for weights of this network, or contains anything but float tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(data) > MOST_BYTES or sum(entry.file_size for entry in entries) > MOST_BYTES:
                raise CheckpointError(
                    f"{path} unpacks to more than {MOST_BYTES >> 20} MiB, but weights of this network take about 0.3 MB",
                    "check where the file comes from",
                )
            pickled = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickled) != 1:
                raise CheckpointError(
                    f"{path} is a zip archive without data.pkl, so not a PyTorch checkpoint", "check the path"
                )
            if pickled[0].file_size > _MOST_PICKLED_BYTES:
                raise _ForeignError(f"a dictionary of {pickled[0].file_size} bytes")
            root = pickled[0].filename.removesuffix("data.pkl")
            found = _Reader(archive, root).run(_read(archive, pickled[0]))
    except CheckpointError:
        raise
    except _NumberTypeError as error:
        raise CheckpointError(
            f"{path} contains {error} tensors, but only float ones can be read", "convert them with .float() and save again"
        ) from error
    except _ForeignError as error:
        raise CheckpointError(
            f"the pickle in {path} contains more than tensors ({error})", "do not load it with software that runs pickles"
        ) from error
    except Exception as error:  # a damaged archive can raise almost any exception
        raise CheckpointError(f"{path} is a damaged PyTorch checkpoint ({brief(error)})", "copy it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
        raise CheckpointError(f"{path} does not contain a plain dictionary of tensors", "save only the state_dict()")
    if len(found) > _MOST_TENSORS:
        raise CheckpointError(
            f"{path} contains {len(found)} tensors, which is too many for this network", "check the path", got=len(found)
        )
    return found


class _ForeignError(Exception):
    """Content that a dictionary of tensors never needs."""


class _NumberTypeError(Exception):
    """Tensors of an unsupported type; carries its name."""


@dataclass(frozen=True, slots=True)
class _Storage:
    """A storage type that the pickle refers to."""

    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Function:
    """A function that the pickle may call."""

    call: Callable[..., Any]


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"})
_SHORT_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    """Interprets the pickle instructions that build a dictionary of tensors.

    Values are constants, lists, tuples, dictionaries with text keys, and tensors; nothing is hashed, compared, or allocated
    with a size taken from the file.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._storages: dict[str, Array] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(pickled)):
            name = instruction.name
            if count >= _MOST_INSTRUCTIONS:
                raise _ForeignError(f"more than {_MOST_INSTRUCTIONS} instructions")
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _ARGUMENTS:
                self._stack.append(argument)
            elif name in _SHORT_TUPLES:
                self._stack.append(tuple(self._pop() for _ in range(_SHORT_TUPLES[name]))[::-1])
            elif name in self._HANDLERS:
                self._HANDLERS[name](self, argument)
            elif name not in ("PROTO", "FRAME", "STOP"):
                raise _ForeignError(f"the instruction {name}")
        return self._pop()

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark in the wrong place")
        return value

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _put(self, number: int | None) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("an append to something other than a list")
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError("an entry for something other than a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise _ForeignError("a key is not text")
            target[key] = value

    def _two(self) -> list[Any]:
        value, key = self._pop(), self._pop()
        return [key, value]

    def _dictionary(self) -> None:
        values = self._pop_to_mark()
        self._stack.append({})
        self._update(values)

    def _name(self, module: Any, name: Any) -> None:
        found = _NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if found is None and module == "torch" and str(name).endswith("Storage"):
            raise _NumberTypeError(str(name).removesuffix("Storage")[:40])
        if found is None:
            raise _ForeignError(f"it refers to {printable(str(module), 60)}.{printable(str(name), 60)}")
        self._stack.append(found)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise _ForeignError("a call of an unknown function")
        self._stack.append(function.call(*arguments))

    def _set_state(self) -> None:
        # Module versions, which torch stores next to the tensors.
        self._pop()
        if not isinstance(self._stack[-1], dict):
            raise _ForeignError("a state for something other than a dictionary")

    def _load(self) -> None:
        kind, storage, key, _device, count = self._pop()
        if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
            raise _ForeignError("it refers to something other than a tensor")
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._root}data/{key}")
            if type(count) is not int or count * storage.dtype.itemsize != entry.file_size:
                raise ValueError(f"storage {printable(key, 40)} has {entry.file_size} bytes, not {count} numbers")
            self._storages[key] = np.frombuffer(_read(self._archive, entry), storage.dtype)
        self._stack.append(self._storages[key])

    _HANDLERS: Mapping[str, Callable[[_Reader, Any], None]] = {
        "MARK": lambda self, _: self._stack.append(_MARK),
        "EMPTY_LIST": lambda self, _: self._stack.append([]),
        "EMPTY_DICT": lambda self, _: self._stack.append({}),
        "TUPLE": lambda self, _: self._stack.append(tuple(self._pop_to_mark())),
        "LIST": lambda self, _: self._stack.append(self._pop_to_mark()),
        "DICT": lambda self, _: self._dictionary(),
        "APPEND": lambda self, _: self._extend([self._pop()]),
        "APPENDS": lambda self, _: self._extend(self._pop_to_mark()),
        "SETITEM": lambda self, _: self._update(self._two()),
        "SETITEMS": lambda self, _: self._update(self._pop_to_mark()),
        "PUT": _put, "BINPUT": _put, "LONG_BINPUT": _put, "MEMOIZE": _put,
        "GET": lambda self, number: self._stack.append(self._memo[number]),
        "BINGET": lambda self, number: self._stack.append(self._memo[number]),
        "LONG_BINGET": lambda self, number: self._stack.append(self._memo[number]),
        "GLOBAL": lambda self, names: self._name(*names.split(" ", 1)),
        "STACK_GLOBAL": lambda self, _: self._name(*self._two()),
        "REDUCE": lambda self, _: self._call(),
        "BUILD": lambda self, _: self._set_state(),
        "BINPERSID": lambda self, _: self._load(),
    }  # fmt: skip


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    # Other methods allocate memory according to what the archive claims.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("an entry is compressed with a method that torch does not use")
    return archive.read(entry)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_unused: object) -> Array:
    # torch also passes requires_grad and backward hooks; both are irrelevant here.
    if not isinstance(storage, np.ndarray) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor with invalid arguments")
    if (
        len(size) != len(stride)
        or len(size) > _MOST_DIMENSIONS
        or any(type(each) is not int for each in (offset, *size, *stride))
    ):
        raise ValueError("a tensor with an invalid shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # With more elements than the storage has, a small file could unfold into a huge array.
    reaches_beyond = last >= storage.size or math.prod(size) > storage.size
    if offset < 0 or min(stride, default=0) < 0 or min(size, default=1) < 1 or reaches_beyond:
        raise _ForeignError("a tensor reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _unwrap_parameter(tensor: Any, *_unused: object) -> Any:
    return tensor


def _empty_dictionary(*entries: object) -> dict[str, Any]:
    if entries:
        raise _ForeignError("a dictionary constructed with arguments")
    return {}


_NAMES: Mapping[tuple[str, str], _Function | _Storage] = {
    ("collections", "OrderedDict"): _Function(_empty_dictionary),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_unwrap_parameter),
    **{("torch", name): _Storage(dtype) for name, dtype in _DTYPES.items()},
}
