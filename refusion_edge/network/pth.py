"""Official ``.pth`` files, read without torch and without ``pickle``.

A checkpoint of PyTorch is a zip archive with a pickled dictionary and one raw file per tensor. What ``pickle`` would do for a
stranger's file is not only to run code: 150 bytes can ask it for gigabytes. So the few instructions that a dictionary of
tensors needs are followed here, on a budget, and any other is refused.
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

# The official files have 281 kB, of which 25 kB are the dictionary: 6,500 instructions for 140 tensors.
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
    """Read a dictionary of tensors.

    Args:
        data: The file, a zip archive.
        path: What to call it in messages.

    Raises:
        CheckpointError: It is damaged, too large for weights of this network, or holds something else than float tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(data) > MOST_BYTES or sum(entry.file_size for entry in entries) > MOST_BYTES:
                raise CheckpointError(
                    f"cannot take {path} for weights of about 0.3 MB: it unpacks to more than {MOST_BYTES >> 20} MiB; check "
                    "where it comes from."
                )
            pickled = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickled) != 1:
                raise CheckpointError(f"{path} is a zip archive without data.pkl, no PyTorch checkpoint; check the path.")
            if pickled[0].file_size > _MOST_PICKLED_BYTES:
                raise _ForeignError(f"a dictionary of {pickled[0].file_size} bytes")
            root = pickled[0].filename.removesuffix("data.pkl")
            found = _Reader(archive, root).run(_read(archive, pickled[0]))
    except CheckpointError:
        raise
    except _NumberTypeError as error:
        raise CheckpointError(
            f"{path} holds {error} tensors, and only float ones can be read; convert them with .float() and save again."
        ) from error
    except _ForeignError as error:
        raise CheckpointError(
            f"{path} has a pickle that holds something else than tensors ({error}); do not load it with anything that runs "
            "pickles."
        ) from error
    except Exception as error:  # a damaged archive can raise nearly anything, none of it a bug of ours
        raise CheckpointError(f"{path} is a damaged PyTorch checkpoint ({brief(error)}); copy it again.") from error
    if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
        raise CheckpointError(f"{path} holds another structure than a dictionary of tensors; save the state_dict() alone.")
    if len(found) > _MOST_TENSORS:
        raise CheckpointError(f"{path} holds {len(found)} tensors, which are not those of this network; check the path.")
    return found


class _ForeignError(Exception):
    """An instruction that no dictionary of tensors needs."""


class _NumberTypeError(Exception):
    """Tensors of a type that no weights of ours have; carries its name."""


@dataclass(frozen=True, slots=True)
class _Storage:
    """Type of storage, as the pickle refers to it."""

    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Function:
    """One of the functions that a dictionary of tensors may call."""

    call: Callable[..., Any]


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"})
_SHORT_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    """Follows the instructions of a pickle as far as they make a dictionary of tensors.

    Values are constants, lists, tuples, dictionaries with text as keys, and tensors; nothing is hashed, compared, or allocated
    by a number that the file names.
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
            raise ValueError("something that is not a list is appended to")
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError("something that is not a dictionary is filled")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise _ForeignError("a key that is no text")
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
            raise _ForeignError(f"it refers to {str(module)[:60]}.{str(name)[:60]}")
        self._stack.append(found)

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise _ForeignError("a call of something else")
        self._stack.append(function.call(*arguments))

    def _set_state(self) -> None:
        # Versions of the modules, which torch notes beside the tensors.
        self._pop()
        if not isinstance(self._stack[-1], dict):
            raise _ForeignError("a state of something else")

    def _load(self) -> None:
        kind, storage, key, _device, count = self._pop()
        if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
            raise _ForeignError("it refers to something that is not a tensor")
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._root}data/{key}")
            if type(count) is not int or count * storage.dtype.itemsize != entry.file_size:
                raise ValueError(f"storage {key[:40]} has {entry.file_size} bytes, not {count} numbers")
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
    # The others take memory by what the archive says of itself.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed in a way that torch does not use")
    return archive.read(entry)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_unused: object) -> Array:
    # torch passes requires_grad and backward hooks as well; neither means anything here.
    if not isinstance(storage, np.ndarray) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor of something else")
    if (
        len(size) != len(stride)
        or len(size) > _MOST_DIMENSIONS
        or any(type(each) is not int for each in (offset, *size, *stride))
    ):
        raise ValueError("a tensor with a shape that cannot be")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # More elements than the storage has would be a small file that unfolds into a huge array.
    reaches_beyond = last >= storage.size or math.prod(size) > storage.size
    if offset < 0 or min(stride, default=0) < 0 or min(size, default=1) < 1 or reaches_beyond:
        raise _ForeignError("a tensor reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _unwrap_parameter(tensor: Any, *_unused: object) -> Any:
    return tensor


def _empty_dictionary(*entries: object) -> dict[str, Any]:
    if entries:
        raise _ForeignError("a dictionary made in another way than by its entries")
    return {}


_NAMES: Mapping[tuple[str, str], _Function | _Storage] = {
    ("collections", "OrderedDict"): _Function(_empty_dictionary),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_unwrap_parameter),
    **{("torch", name): _Storage(dtype) for name, dtype in _DTYPES.items()},
}
