"""Headers of training checkpoints that somebody else wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs torch")

import torch
from safetensors.torch import save_file

from refusion_edge.errors import CheckpointError
from refusion_edge.network.checkpoint import METADATA_KEY, TRAINING_SCHEMA
from refusion_edge.train.settings import resolve
from refusion_edge.train.state import Counters, read_state
from tests.conftest import one_sentence


def about(**changes: Any) -> dict[str, Any]:
    settings = resolve("default", "ir_vis", device="cpu").to_tables()
    counters = {name: getattr(Counters(), name) for name in Counters.__slots__}
    document = {"schema": TRAINING_SCHEMA, "task": "ir_vis", "settings": settings, "counters": counters, "pairs": ["a"]}
    return {**document, "torch": "2", "device": "cpu", **changes}


def write(document: object) -> Path:
    save_file({"fusion.x": torch.zeros(1)}, "step-0000001.safetensors", {METADATA_KEY: json.dumps(document)})
    return Path("step-0000001.safetensors")


def test_a_sound_header_is_read() -> None:
    found = read_state(write(about()))
    assert (found.task, found.pairs, found.counters) == ("ir_vis", ("a",), Counters())
    assert found.settings == resolve("default", "ir_vis", device="cpu")


@pytest.mark.parametrize(
    "document",
    [
        [1],
        "text",
        about(task=5),
        about(task=[]),
        about(pairs="abc"),
        about(pairs=[1]),
        about(settings=[]),
        about(settings={"run": []}),
        about(counters=[]),
        about(counters={"step": "7"}),
        about(counters={"step": 1.5}),
        about(counters={"step": -1}),
        about(counters={"step": 1e999}),
        about(counters={"step": 1 << 80}),
        about(counters={"steps": 1}),
        about(counters={"reference": {"a": "b"}}),
        about(counters={"best": float("nan")}),
        about(schema=7),
        about(schema="\ud800"),
        {"schema": TRAINING_SCHEMA},
    ],
)
def test_a_header_with_wrong_types_is_one_error(document: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_state(write(document))
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("kind", ["pipe", "sparse", "short"])
def test_a_checkpoint_is_a_regular_file_of_its_size(kind: str) -> None:
    path = Path("step-0000001.safetensors")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 34 if kind == "sparse" else 3)
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    assert one_sentence(str(caught.value))
