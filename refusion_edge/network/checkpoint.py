"""Weights files: safetensors of our own, and the official ``.pth`` layout, both read without torch."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge.arrays import Array, State
from refusion_edge.documents import brief, parse_json, shown, typed
from refusion_edge.errors import CheckpointError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.network.parameters import PARAMETERS, is_convolution
from refusion_edge.network.pth import read_pth
from refusion_edge.tasks import TASKS

SCHEMA = "refusion-edge/checkpoint/1"
METADATA_KEY = "refusion-edge"

# Checkpoints of training hold other networks and optimisers as well, each under its own prefix.
TRAINING_SCHEMA = "refusion-edge/training/1"
AVERAGE_GROUP = "fusion_ema"

# Weights of this network have 0.3 MB and checkpoints of training 3 MB; nothing near this limit can be one.
MOST_BYTES = 64 << 20
# A checkpoint of training names every pair in its header.
_MOST_HEADER_BYTES = 8 << 20
# Models and engines: made from weights, which are not read back from them.
_NO_WEIGHTS = (".onnx", ".plan", ".engine", ".trt", ".rfx")
_LISTED = 3


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
    return parse_checkpoint(read_file(path, kind="weights file", most_bytes=MOST_BYTES, error=CheckpointError), path)


def parse_checkpoint(data: bytes, path: Path) -> Checkpoint:
    """Read the bytes of a weights file; see ``read_checkpoint``.

    Args:
        data: Content of the file.
        path: What to call it in messages.

    Raises:
        CheckpointError: It is damaged, not a checkpoint, or holds another network.
    """
    if not data:
        raise CheckpointError(f"{path} is empty; copy it again.")
    if _is_zip(data):
        return Checkpoint(None, _validated(_merge_spellings(read_pth(data, path), path), path))
    # A safetensors file begins with the length of its header, which may end in the same byte, and then with a brace.
    if data[:1] == b"\x80" and data[8:9] != b"{":
        raise CheckpointError(
            f"expected a zip-format .pth in {path}, got a bare pickle, which could run code; save it "
            "again with a current torch.save."
        )
    return _read_safetensors(path, data)


def describe_format(data: bytes) -> str:
    """Name the format of the bytes of a weights file."""
    return "official .pth (zip archive)" if _is_zip(data) else "safetensors"


def _is_zip(data: bytes) -> bool:
    return zipfile.is_zipfile(io.BytesIO(data))


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
    from refusion_edge.machine import require

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


def read_header(data: bytes, source: str) -> dict[str, Any]:
    """Read what a safetensors file says of itself under our key, and no tensor.

    Args:
        data: Content of the file.
        source: What to call it in messages.

    Returns:
        The document; empty if there is none.

    Raises:
        CheckpointError: It is no safetensors file, its header is too long or damaged, or the document is no JSON of ours.
    """
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_MOST_HEADER_BYTES, len(data) - 8) or data[8:9] != b"{":
        raise CheckpointError(f"{source} is no safetensors file or a damaged one; copy it again.")
    header = typed(
        dict[str, Any], parse_json(data[8 : 8 + length], source, error=CheckpointError), source, error=CheckpointError
    )
    texts = typed(dict[str, str], header.get("__metadata__", {}), f"the metadata of {source}", error=CheckpointError)
    about = parse_json(texts.get(METADATA_KEY, "{}"), f"the metadata of {source}", error=CheckpointError)
    return typed(dict[str, Any], about, f"the metadata of {source}", error=CheckpointError)


@dataclass(frozen=True, slots=True)
class _About:
    """What the file of one network says of itself."""

    schema: str = SCHEMA
    task: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


def _read_safetensors(path: Path, data: bytes) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        document = read_header(data, str(path))
        state = load(data)
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise _no_weights(path, error) from error
    except CheckpointError as error:
        if path.suffix not in _NO_WEIGHTS:
            raise
        raise _no_weights(path, error) from error
    known = {key: document[key] for key in ("schema", "task", "notes") if key in document}
    about = typed(_About, known, f"the metadata of {path}", error=CheckpointError)
    if about.task not in (None, *TASKS):
        raise CheckpointError(
            f"{path} is for the task {shown(about.task)}, which is none of {', '.join(TASKS)}; name other weights."
        )
    if about.schema == TRAINING_SCHEMA:
        prefix = f"{AVERAGE_GROUP}."
        state = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    elif about.schema != SCHEMA:
        raise CheckpointError(f"{path} has the schema {shown(about.schema)} instead of {SCHEMA}; update refusion-edge.")
    return Checkpoint(about.task, _validated(_merge_spellings(state, path), path), about.notes)


def _no_weights(path: Path, error: Exception) -> CheckpointError:
    remedy = "name the weights that it was made from" if path.suffix in _NO_WEIGHTS else "copy it again"
    return CheckpointError(f"{path} is no safetensors or official .pth file, or a damaged one ({brief(error)}); {remedy}.")


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
        if state[name].dtype.kind != "f":
            raise CheckpointError(f"{name} of {path} holds {state[name].dtype} instead of floats; export it again.")
        # Beyond the range of float32 counts as infinite.
        if not (np.abs(state[name]) <= np.finfo(np.float32).max).all():
            raise CheckpointError(
                f"expected finite numbers in {path}, got NaN or infinity in {name}; train or export it again."
            )
    return {name: np.ascontiguousarray(state[name], dtype=np.float32) for name in PARAMETERS}


def _count(names: list[str], word: str) -> str:
    if not names:
        return f"0 {word}"
    return f"{len(names)} {word} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
