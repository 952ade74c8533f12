"""Weights files: safetensors of our own, and the official ``.pth`` layout, both read without torch.

An official checkpoint is a zip archive with a pickled dictionary and one raw file per tensor. It is unpickled by a
reader that knows three names and nothing else, so that a file can hold numbers but cannot run code.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge.arrays import Array, State
from refusion_edge.errors import CheckpointError
from refusion_edge.files import write_atomically
from refusion_edge.network.parameters import PARAMETERS, is_convolution
from refusion_edge.tasks import TASKS

SCHEMA = "refusion-edge/checkpoint/1"
METADATA_KEY = "refusion-edge"

# Checkpoints of training hold other networks and optimisers as well, each under its own prefix.
TRAINING_SCHEMA = "refusion-edge/training/1"
AVERAGE_GROUP = "fusion_ema"

# A checkpoint of this network has 0.3 MB; nothing near this limit can be one.
_MAX_BYTES = 64 << 20
# Models and engines: made from weights, which are not read back from them.
_NO_WEIGHTS = (".onnx", ".plan", ".engine", ".trt", ".rfx")
_LISTED = 3
_STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "DoubleStorage": np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Parameters of the fusion network and what is known about them.

    Attributes:
        task: Name of the task they were trained for, or None if the file does not say.
        state: The 86 parameters, name to float32 array.
        notes: Free text about their making, name to text.
    """

    task: str | None
    state: State
    notes: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a weights file of either kind; what it is is decided by its content.

    Args:
        path: A safetensors file with our 86 names, a training checkpoint (its moving average is taken), or an official
            ``.pth`` with either or both spellings of each convolution (``NAME.weight`` and ``NAME.conv.weight``, which
            must agree).

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or holds another network.
    """
    path = Path(path)
    return parse_checkpoint(_read(path), path)


def parse_checkpoint(data: bytes, path: Path) -> Checkpoint:
    """Read the bytes of a weights file; see ``read_checkpoint``.

    Args:
        data: Content of the file.
        path: What to call it in messages.

    Raises:
        CheckpointError: It is damaged, not a checkpoint, or holds another network.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        return Checkpoint(None, _validated(_merge_spellings(_read_pth(path, data), path), path))
    # A safetensors file begins with the length of its header, which may end in the same byte, and then with a brace.
    if data[:1] == b"\x80" and data[8:9] != b"{":
        raise CheckpointError(
            f"expected a zip-format .pth in {path}, got a bare pickle, which could run code; save it "
            "again with a current torch.save."
        )
    return _read_safetensors(path, data)


def describe_format(path: str | os.PathLike[str]) -> str:
    """Name the format of a weights file."""
    return "official .pth (zip archive)" if zipfile.is_zipfile(path) else "safetensors"


def write_safetensors(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write our own format: the 86 unique names, task and notes in the metadata.

    Raises:
        CheckpointError: The parameters are not those of the network.
        OutputError: The file cannot be written; nothing is left behind.
    """
    write_atomically(Path(path), safetensors_bytes(checkpoint))


def safetensors_bytes(checkpoint: Checkpoint) -> bytes:
    """Serialise a checkpoint in our own format; equal checkpoints give equal bytes."""
    from safetensors.numpy import save

    state = _validated(checkpoint.state, Path("state"))
    about = {"schema": SCHEMA, "task": checkpoint.task, "notes": dict(checkpoint.notes)}
    # One entry only: safetensors writes several in an order that differs from run to run.
    metadata = {METADATA_KEY: json.dumps(about, sort_keys=True)}
    serialised: bytes = save({name: np.ascontiguousarray(state[name]) for name in PARAMETERS}, metadata)
    return serialised


def official_layout(state: State) -> OrderedDict[str, Array]:
    """Lay parameters out as the official release does: 140 entries, every convolution under both spellings."""
    entries: OrderedDict[str, Array] = OrderedDict()
    for name in PARAMETERS:
        entries[name] = state[name]
        if is_convolution(name):
            entries[_second_spelling(name)] = state[name]
    return entries


def write_pth(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write the official ``.pth`` layout, which the official code loads strictly. Needs torch.

    Raises:
        MissingDependencyError: torch is not installed.
        OutputError: The file cannot be written; nothing is left behind.
    """
    from refusion_edge._optional import require

    torch = require("torch", "train", "writing .pth files")
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(array))
        for name, array in _validated(checkpoint.state, Path("state")).items()
    }
    buffer = io.BytesIO()
    # Both spellings share one tensor, as in the official files: 86 storages for 140 names.
    torch.save(
        OrderedDict((name, tensors[name.replace(".conv.weight", ".weight")]) for name in official_layout(checkpoint.state)),
        buffer,
    )
    write_atomically(Path(path), buffer.getvalue())


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise CheckpointError(
                f"expected a weights file of about 0.3 MB, got {path} with {size / 1e6:.0f} MB; check the path."
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"expected a weights file at {path}, got nothing; check the path.") from None
    except OSError as error:
        raise CheckpointError(f"expected a readable weights file at {path}, got '{error.strerror}'; check the path.") from error
    if not data:
        raise CheckpointError(f"expected weights in {path}, got a file of zero bytes; copy it again.")
    return data


def _read_safetensors(path: Path, data: bytes) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        state = load(data)
        # Sound, or it would not have loaded: the length of the header, then the header.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
        schema, task, notes = about.get("schema", SCHEMA), about.get("task"), dict(about.get("notes", {}))
        if task not in (None, *TASKS) or not all(isinstance(text, str) for item in notes.items() for text in item):
            raise ValueError("its description names no task of ours, or holds something else than text")
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        remedy = "name the weights that it was made from" if path.suffix in _NO_WEIGHTS else "copy it again"
        raise CheckpointError(
            f"expected a safetensors or official .pth file in {path}, got something else or a damaged file ({error}); {remedy}."
        ) from error
    if schema == TRAINING_SCHEMA:
        prefix = f"{AVERAGE_GROUP}."
        state = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    elif schema != SCHEMA:
        raise CheckpointError(f"expected the schema {SCHEMA} in {path}, got {schema}; update refusion-edge.")
    return Checkpoint(task, _validated(_merge_spellings(state, path), path), notes)


def _second_spelling(name: str) -> str:
    return name.removesuffix(".weight") + ".conv.weight"


def _merge_spellings(entries: Mapping[str, Array], path: Path) -> dict[str, Array]:
    merged: dict[str, Array] = {}
    for name, array in entries.items():
        unique = name.removesuffix(".conv.weight") + ".weight" if name.endswith(".conv.weight") else name
        if unique in merged and not np.array_equal(merged[unique], array, equal_nan=True):
            raise CheckpointError(
                f"expected equal values under both spellings of {unique} in {path}, got two different "
                "ones; the file was edited or merged wrongly, export it again."
            )
        merged[unique] = array
    return merged


def _validated(state: Mapping[str, Array], path: Path) -> State:
    missing = [name for name in PARAMETERS if name not in state]
    extra = [name for name in state if name not in PARAMETERS]
    if missing or extra:
        raise CheckpointError(
            f"expected the {len(PARAMETERS)} parameters of the fusion network in {path}, got "
            f"{_count(missing, 'missing')} and {_count(extra, 'unknown')}; give weights of this network."
        )
    for name, shape in PARAMETERS.items():
        if state[name].shape != shape:
            raise CheckpointError(
                f"expected {name} of shape {shape} in {path}, got {state[name].shape}; give weights of this network."
            )
        if not np.isfinite(state[name]).all():
            raise CheckpointError(
                f"expected finite numbers in {path}, got NaN or infinity in {name}; train or export it again."
            )
    return {name: np.ascontiguousarray(state[name], dtype=np.float32) for name in PARAMETERS}


def _count(names: list[str], word: str) -> str:
    if not names:
        return f"0 {word}"
    return f"{len(names)} {word} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"


class _Storage:
    """Name of a storage type, as the pickle refers to it."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype


class _NumberTypeError(Exception):
    """Tensors of a type that no weights of ours have; carries its name."""


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles a dictionary of tensors; any other name in the stream is refused before it is looked up."""

    def __init__(self, stream: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self._archive = archive
        self._root = root
        self._storages: dict[str, Array] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _unwrap_parameter
        if module == "torch" and name in _STORAGE_DTYPES:
            return _Storage(_STORAGE_DTYPES[name])
        if module == "torch" and name.endswith("Storage"):
            raise _NumberTypeError(name.removesuffix("Storage"))
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, reference: Any) -> Array:
        kind, storage, key, _device, count = reference
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("it refers to something that is not a tensor")
        if key not in self._storages:
            array = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), storage.dtype)
            if array.size != count:
                raise pickle.UnpicklingError(f"storage {key} holds {array.size} numbers instead of {count}")
            self._storages[key] = array
        return self._storages[key]


def _rebuild_tensor(storage: Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_unused: object) -> Array:
    # torch passes requires_grad and backward hooks as well; neither means anything here.
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # More elements than the storage has would be a small file that unfolds into a huge array.
    reaches_beyond = last >= storage.size or math.prod(size) > storage.size
    if offset < 0 or min(stride, default=0) < 0 or min(size, default=1) < 1 or reaches_beyond:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _unwrap_parameter(tensor: Array, *_unused: object) -> Array:
    return tensor


def _read_pth(path: Path, data: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise CheckpointError(
                    f"expected a weights file of about 0.3 MB, got {path}, which unpacks to more than "
                    f"{_MAX_BYTES >> 20} MB; check where it comes from."
                )
            pickled = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickled) != 1:
                raise CheckpointError(
                    f"expected a PyTorch checkpoint in {path}, got a zip archive without data.pkl; check the path."
                )
            root = pickled[0].removesuffix("data.pkl")
            entries = _TensorUnpickler(io.BytesIO(archive.read(pickled[0])), archive, root).load()
    except CheckpointError:
        raise
    except _NumberTypeError as error:
        raise CheckpointError(
            f"expected float tensors in {path}, got {error} ones; convert them with .float() and save again."
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"expected only tensors in {path}, got a pickle that holds something else ({error}); "
            "do not load it with anything that runs pickles."
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything, none of it a bug of ours
        raise CheckpointError(
            f"expected a whole PyTorch checkpoint in {path}, got a damaged one ({error}); copy it again."
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in entries.items()):
        raise CheckpointError(
            f"expected a plain dictionary of tensors in {path}, got another structure; save the state_dict() alone."
        )
    return entries
