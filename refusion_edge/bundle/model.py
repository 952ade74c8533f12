"""Whether the ONNX model of a bundle is the network with the weights of the bundle, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.errors import MisfitError
from refusion_edge.network.graph import FORM_KEY

if TYPE_CHECKING:
    import onnx


def checked_model(data: bytes, made: onnx.ModelProto, path: Path, remedy: str) -> bytes:
    """Hold a model file against the model that it should be, all but the names of its nodes and of its graph.

    A file from elsewhere is never handed to a runtime: a model can name files and memory to read, and loops without an end.

    Args:
        data: The file, which may come from anybody: it is parsed, and never run.
        made: The model, made again by this release.
        path: Name of the file, for the message.
        remedy: What to do about another model, without a full stop.

    Returns:
        The model made again, serialized.

    Raises:
        MisfitError: The file holds another model.
    """
    if not _is_same(data, made):
        raise MisfitError(
            f"{path} is not what this release makes of the weights beside it: it was changed, or built by another release; "
            f"{remedy}"
        )
    serialized: bytes = made.SerializeToString(deterministic=True)
    return serialized


def _is_same(data: bytes, made: onnx.ModelProto) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    found, expected = onnx.ModelProto(), onnx.ModelProto()
    expected.CopyFrom(made)
    try:
        found.ParseFromString(data)
    except DecodeError:
        return False
    for model in (found, expected):
        # Release 0.1 called the one layout for CPUs by the names of two runtimes.
        model.graph.name = ""
        for entry in model.metadata_props:
            if entry.key == FORM_KEY:
                entry.value = ""
        for node in model.graph.node:
            node.name = ""
    same: bool = found == expected
    return same
