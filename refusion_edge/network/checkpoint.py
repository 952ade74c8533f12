"""Weights files: our own safetensors and the official ``.pth`` layout, both read without torch."""

from __future__ import annotations

import io
import json
import logging
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
from refusion_edge.errors import CheckpointError, UsageError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.network.family import DEFAULT_NETWORK, NETWORKS, network_of
from refusion_edge.network.parameters import PARAMETERS, is_convolution
from refusion_edge.network.pth import read_pth
from refusion_edge.tasks import TASKS

SCHEMA = "refusion-edge/checkpoint/1"
METADATA_KEY = "refusion-edge"

# Training checkpoints also contain other networks and optimizers, each under its own prefix.
TRAINING_SCHEMA = "refusion-edge/training/1"
AVERAGE_GROUP = "fusion_ema"

# Weights take 0.1 to 0.3 MB and training checkpoints 3 MB, both far below this limit.
MOST_BYTES = 64 << 20
# A training checkpoint names every pair in its header.
_MOST_HEADER_BYTES = 8 << 20
# Models and engines: built from weights, which cannot be read back from them.
_NO_WEIGHTS = (".onnx", ".plan", ".engine", ".trt", ".rfx")
_LISTED = 3
# Before the names of parallel and of compiled modules.
_WRAPPERS = ("module.", "_orig_mod.")
_TYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Parameters of a fusion network, their task and notes.

    Attributes:
        task: Name of the task that they were trained for, or None if the file does not record it.
        state: All parameters of one network, name to float32 array.
        notes: Free text about how they were trained, by name.
    """

    task: str | None
    state: State
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Name of the network that the parameters belong to."""
        return network_of(self.state).name


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a weights file; its content determines the format.

    Args:
        path: A safetensors file of one of our networks, a training checkpoint (its moving average is taken), or an official
            ``.pth`` with either or both spellings of each convolution (``NAME.weight`` and ``NAME.conv.weight``, which
            must agree).

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or contains something else.
    """
    path = Path(path)
    return parse_checkpoint(read_file(path, kind="weights file", most_bytes=MOST_BYTES, error=CheckpointError), path)


def parse_checkpoint(data: bytes, path: Path) -> Checkpoint:
    """Read the bytes of a weights file; see ``read_checkpoint``.

    Args:
        data: Content of the file.
        path: Name of the file in messages.

    Raises:
        CheckpointError: It is damaged, not a checkpoint, or contains something else.
    """
    if not data:
        raise CheckpointError(f"{path} is empty", "copy it again")
    if _is_zip(data):
        return Checkpoint(None, _validated(_merge_spellings(_unwrapped(read_pth(data, path), path), path), path))
    # A safetensors file begins with the length of its header, which may end in the same byte, and then with a brace.
    if data[:1] == b"\x80" and data[8:9] != b"{":
        raise CheckpointError(
            f"{path} is a bare pickle, which could run code, not a zip-format .pth", "save it again with a current torch.save"
        )
    return _read_safetensors(path, data)


def describe_format(data: bytes) -> str:
    """Name the format of a weights file, given its content."""
    return "official .pth (zip archive)" if _is_zip(data) else "safetensors"


def _is_zip(data: bytes) -> bool:
    return zipfile.is_zipfile(io.BytesIO(data))


def require_network(checkpoint: Checkpoint, network: str | None, source: str) -> None:
    """Check that weights are those of the network that was asked for.

    Args:
        checkpoint: The weights.
        network: Name of a network, or None where nothing was asked for.
        source: Name of the file in messages.

    Raises:
        CheckpointError: They belong to another network.
    """
    if network not in (None, checkpoint.network):
        raise CheckpointError(
            f"{source} holds weights of the network {checkpoint.network}, but {network} was requested",
            f"use --network {checkpoint.network} or other weights",
            expected=network,
            got=checkpoint.network,
        )


def write_safetensors(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write our own format: the parameters, with network, task and notes in the metadata.

    Raises:
        CheckpointError: The parameters are not those of one of our networks.
        OutputError: The file cannot be written; nothing is left behind.
    """
    write_atomically(Path(path), safetensors_bytes(checkpoint))


def safetensors_bytes(checkpoint: Checkpoint) -> bytes:
    """Serialize a checkpoint in our own format; equal checkpoints give equal bytes."""
    from safetensors.numpy import save

    state = _validated(checkpoint.state, Path("state"))
    about: dict[str, object] = {"schema": SCHEMA, "task": checkpoint.task, "notes": dict(checkpoint.notes)}
    if checkpoint.network != DEFAULT_NETWORK:  # files of the paper's network keep the bytes that earlier releases wrote
        about["network"] = checkpoint.network
    # A single entry, because safetensors writes several in an order that differs from run to run.
    metadata = {METADATA_KEY: json.dumps(about, sort_keys=True)}
    serialized: bytes = save({name: np.ascontiguousarray(array) for name, array in state.items()}, metadata)
    return serialized


def official_layout(state: State) -> OrderedDict[str, Array]:
    """Convert parameters to the official layout: 140 entries, with every convolution under both spellings."""
    entries: OrderedDict[str, Array] = OrderedDict()
    for name in PARAMETERS:
        entries[name] = state[name]
        if is_convolution(name):
            entries[_second_spelling(name)] = state[name]
    return entries


def write_pth(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write the official ``.pth`` layout, which the official code can load strictly. Needs torch.

    Raises:
        UsageError: The weights are not those of the paper's network.
        MissingDependencyError: torch is not installed.
        OutputError: The file cannot be written; nothing is left behind.
    """
    from refusion_edge.machine import require

    if checkpoint.network != DEFAULT_NETWORK:
        raise UsageError(
            f"only the network refusion has an official layout, and these are weights of {checkpoint.network}",
            "export them as .safetensors",
            expected="refusion",
            got=checkpoint.network,
        )
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
    """Read our metadata from the header of a safetensors file, without reading any tensor.

    Args:
        data: Content of the file.
        source: Name of the file in messages.

    Returns:
        The metadata under our key; empty if there is none.

    Raises:
        CheckpointError: It is not a safetensors file, its header is too long or damaged, or the metadata is invalid.
    """
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_MOST_HEADER_BYTES, len(data) - 8) or data[8:9] != b"{":
        raise CheckpointError(f"{source} is not a safetensors file, or is damaged", "copy it again")
    header = typed(
        dict[str, Any], parse_json(data[8 : 8 + length], source, error=CheckpointError), source, error=CheckpointError
    )
    texts = typed(dict[str, str], header.get("__metadata__", {}), f"the metadata of {source}", error=CheckpointError)
    about = parse_json(texts.get(METADATA_KEY, "{}"), f"the metadata of {source}", error=CheckpointError)
    return typed(dict[str, Any], about, f"the metadata of {source}", error=CheckpointError)


@dataclass(frozen=True, slots=True)
class _About:
    """Metadata of a weights file. Files without ``network`` hold ``refusion``."""

    schema: str = SCHEMA
    network: str = DEFAULT_NETWORK
    task: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


def _read_safetensors(path: Path, data: bytes) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        document = read_header(data, str(path))
        state = _load_bfloat16(data) if b'"BF16"' in data[:_MOST_HEADER_BYTES] else load(data)
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise _no_weights(path, f" ({brief(error)})") from error
    except CheckpointError as error:
        if path.suffix not in _NO_WEIGHTS:
            raise
        raise _no_weights(path) from error
    known = {key: document[key] for key in ("schema", "network", "task", "notes") if key in document}
    about = typed(_About, known, f"the metadata of {path}", error=CheckpointError)
    if about.task not in (None, *TASKS):
        raise CheckpointError(
            f"{path} is for the unknown task {shown(about.task)}",
            f"give weights for one of {', '.join(TASKS)}",
            expected=tuple(TASKS),
            got=about.task,
        )
    if about.network not in NETWORKS:
        raise CheckpointError(
            f"{path} is for the unknown network {shown(about.network)}",
            f"update refusion-edge, or give weights for one of {', '.join(NETWORKS)}",
            expected=tuple(NETWORKS),
            got=about.network,
        )
    if about.schema == TRAINING_SCHEMA:
        prefix = f"{AVERAGE_GROUP}."
        state = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    elif about.schema != SCHEMA:
        raise CheckpointError(
            f"{path} has the schema {shown(about.schema)} instead of {SCHEMA}",
            "update refusion-edge",
            expected=SCHEMA,
            got=about.schema,
        )
    checkpoint = Checkpoint(about.task, _validated(_merge_spellings(_unwrapped(state, path), path), path), about.notes)
    if checkpoint.network != about.network:
        raise CheckpointError(
            f"{path} says that it holds the network {about.network}, but its parameters are those of {checkpoint.network}",
            "export it again",
            expected=about.network,
            got=checkpoint.network,
        )
    return checkpoint


def _load_bfloat16(data: bytes) -> State:
    """Load tensors of which some are bfloat16, the upper half of float32, which NumPy does not know."""
    import safetensors

    deserialize: Any = safetensors.deserialize
    state: State = {}
    for name, view in deserialize(data):
        kind = _TYPES.get(view["dtype"])
        if kind is None:
            raise TypeError(f"{name} has the type {view['dtype']}")
        values = np.frombuffer(view["data"], kind)
        if view["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        state[name] = values.reshape(view["shape"])
    return state


def _unwrapped(entries: Mapping[str, Array], path: Path) -> Mapping[str, Array]:
    """Take off the prefixes that wrappers of torch put before every name."""
    bare: dict[str, Array] = {}
    for name, array in entries.items():
        short = name
        while short.startswith(_WRAPPERS):
            short = short.removeprefix(next(prefix for prefix in _WRAPPERS if short.startswith(prefix)))
        if short in bare:
            raise CheckpointError(f"{path} contains {short} with and without a prefix", "export it again")
        bare[short] = array
    if bare.keys() != entries.keys():
        text = f"the names in {path} had the prefixes of wrappers ({', '.join(_WRAPPERS)}), which were left out"
        logging.getLogger("refusion_edge").warning(text)
    return bare


def _no_weights(path: Path, reason: str = "") -> CheckpointError:
    remedy = "give the weights that it was built from" if path.suffix in _NO_WEIGHTS else "copy it again"
    return CheckpointError(f"{path} is not a safetensors or official .pth file, or is damaged{reason}", remedy)


def _second_spelling(name: str) -> str:
    return name.removesuffix(".weight") + ".conv.weight"


def _merge_spellings(entries: Mapping[str, Array], path: Path) -> dict[str, Array]:
    merged: dict[str, Array] = {}
    for name, array in entries.items():
        unique = name.removesuffix(".conv.weight") + ".weight" if name.endswith(".conv.weight") else name
        if unique in merged and not np.array_equal(merged[unique], array, equal_nan=True):
            raise CheckpointError(
                f"the two spellings of {unique} in {path} have different values: the file was edited or merged incorrectly",
                "export it again",
            )
        merged[unique] = array
    return merged


def _validated(state: Mapping[str, Array], path: Path) -> State:
    network = network_of(state)
    try:
        shapes = network.shapes({name: array.shape for name, array in state.items()})
    except UsageError as error:
        raise CheckpointError(
            f"{path} holds no layout of the network {network.name} ({error.problem})", "give weights of this network"
        ) from error
    missing = [name for name in shapes if name not in state]
    extra = [name for name in state if name not in shapes]
    if missing or extra:
        raise CheckpointError(
            f"{path} does not contain the {len(shapes)} parameters of the network {network.name}: "
            f"{_count(missing, 'missing')}, {_count(extra, 'unknown')}",
            "give weights of this network",
            expected=tuple(missing),
            got=tuple(extra),
        )
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise CheckpointError(
                f"{name} in {path} has the shape {state[name].shape} instead of {shape}",
                "give weights of this network",
                expected=tuple(shape),
                got=tuple(state[name].shape),
            )
        if state[name].dtype.kind != "f":
            raise CheckpointError(
                f"{name} in {path} has the type {state[name].dtype} instead of a float type",
                "export it again",
                expected="float",
                got=str(state[name].dtype),
            )
        # Values beyond the range of float32 count as infinite.
        if not (np.abs(state[name]) <= np.finfo(np.float32).max).all():
            raise CheckpointError(f"{name} in {path} contains NaN or infinity", "train or export the weights again")
    return {name: np.ascontiguousarray(state[name], dtype=np.float32) for name in shapes}


def _count(names: list[str], word: str) -> str:
    if not names:
        return f"0 {word}"
    return f"{len(names)} {word} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
