"""Weights files: both formats there and back, and everything that must be refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.arrays import State
from refusion_edge.errors import CheckpointError, MissingDependencyError
from refusion_edge.network.checkpoint import (
    Checkpoint,
    official_layout,
    read_checkpoint,
    safetensors_bytes,
    write_pth,
    write_safetensors,
)
from refusion_edge.network.graph import read_template
from refusion_edge.network.layouts import REFERENCE
from refusion_edge.network.parameters import PARAMETERS
from tests.conftest import one_sentence


def equal(x: State, y: State) -> bool:
    return x.keys() == y.keys() and all(np.array_equal(x[name], y[name]) for name in x)


def test_safetensors_there_and_back(random_state: State) -> None:
    checkpoint = Checkpoint("medical", random_state, {"training": "none"})
    write_safetensors("w.safetensors", checkpoint)
    read = read_checkpoint("w.safetensors")
    assert (read.task, read.notes) == ("medical", {"training": "none"})
    assert equal(read.state, random_state)


def test_headers_of_any_length_are_read(random_state: State) -> None:
    """Their length comes first in the file, and one of its values looks like the beginning of a pickle."""
    first_bytes = set()
    for length in range(0, 256, 8):
        write_safetensors("w.safetensors", Checkpoint("medical", random_state, {"note": "x" * length}))
        first_bytes.add(Path("w.safetensors").read_bytes()[0])
        assert read_checkpoint("w.safetensors").notes["note"] == "x" * length
    assert 0x80 in first_bytes


def test_equal_checkpoints_give_equal_bytes(random_state: State) -> None:
    notes = {f"note {index}": str(index) for index in range(8)}
    backwards = dict(reversed(notes.items()))
    assert safetensors_bytes(Checkpoint("ir_vis", random_state, notes)) == safetensors_bytes(
        Checkpoint("ir_vis", dict(reversed(random_state.items())), backwards)
    )


def test_official_layout_has_both_spellings(random_state: State) -> None:
    layout = official_layout(random_state)
    assert len(layout) == 140
    assert sum(name.endswith(".conv.weight") for name in layout) == 54
    assert layout["FM.qkv1.conv.weight"] is layout["FM.qkv1.weight"]
    names = list(layout)
    assert names[:4] == ["project_in_1.weight", "project_in_1.conv.weight", "project_in_2.weight", "project_in_2.conv.weight"]


def test_pth_there_and_back(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    write_pth("w.pth", Checkpoint(None, random_state))
    assert equal(read_checkpoint("w.pth").state, random_state)
    official = torch.load("w.pth", weights_only=True)
    assert list(official) == list(official_layout(random_state))


@pytest.mark.parametrize("task", ["IVIF", "MIF", "MFIF", "MEIF"])
def test_official_checkpoints_read_as_torch_reads_them(shared_data: Path, task: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is the second opinion")
    path = shared_data / f"reference/checkpoints/ReFusion_{task}.pth"
    expected = torch.load(path, map_location="cpu", weights_only=True)
    state = read_checkpoint(path).state
    for name, tensor in expected.items():
        assert np.array_equal(state[name.replace(".conv.weight", ".weight")], tensor.numpy())
    assert list(official_layout(state)) == list(expected)


@pytest.mark.parametrize("spelling", ["first", "second"])
def test_one_spelling_is_enough(random_state: State, spelling: str) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    keep = (lambda name: ".conv." not in name) if spelling == "first" else (lambda name: f"{name[:-7]}.conv.weight" not in both)
    both = official_layout(random_state)
    torch.save({name: torch.from_numpy(array) for name, array in both.items() if keep(name)}, "w.pth")
    assert equal(read_checkpoint("w.pth").state, random_state)


def test_transposed_tensors_keep_their_meaning(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    strided = {name: torch.from_numpy(np.asfortranarray(array)) for name, array in random_state.items()}
    assert any(not tensor.is_contiguous() for tensor in strided.values())
    torch.save(strided, "w.pth")
    assert equal(read_checkpoint("w.pth").state, random_state)


def save_pth(entries: object) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    tensors = (
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in entries.items()}
        if isinstance(entries, dict)
        else entries
    )
    torch.save(tensors, "bad.pth")


def without(state: State, name: str) -> State:
    return {key: array for key, array in state.items() if key != name}


DAMAGES: dict[str, tuple[Callable[[State], object], str]] = {
    "missing entry": (lambda state: without(state, "FM.qkv1.weight"), "1 missing (FM.qkv1.weight)"),
    "extra entry": (lambda state: {**state, "head.weight": np.zeros(3, np.float32)}, "1 unknown (head.weight)"),
    "wrong shape": (lambda state: {**state, "project_in_1.weight": np.zeros((8, 1, 3, 3), np.float32)}, "(8, 1, 3, 3)"),
    "not a number": (lambda state: {**state, "FM.temperature1": np.full((8, 1, 1), np.nan, np.float32)}, "NaN"),
    "disagreeing spellings": (
        lambda state: {**state, "FM.qkv1.conv.weight": state["FM.qkv1.weight"] + 1},
        "both spellings of FM.qkv1.weight",
    ),
    "a list": (lambda _: [1, 2, 3], "another structure"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pth_is_refused_in_one_sentence(random_state: State, damage: str) -> None:
    change, words = DAMAGES[damage]
    save_pth(change(random_state))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("bad.pth")
    assert words in str(caught.value)
    assert one_sentence(str(caught.value))


def test_parameters_are_as_good_as_tensors(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    torch.save({name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in random_state.items()}, "w.pth")
    assert equal(read_checkpoint("w.pth").state, random_state)


def test_other_number_types_are_named(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    torch.save({name: torch.from_numpy(array).bfloat16() for name, array in random_state.items()}, "bad.pth")
    with pytest.raises(CheckpointError, match=r"got BFloat16 ones; convert them with \.float\(\)") as caught:
        read_checkpoint("bad.pth")
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "about", [{"task": 5}, {"task": "soup"}, {"notes": {"a": [1]}}, {"notes": 3}, {"notes": {"a": 0.5}}, [1]]
)
def test_descriptions_of_a_wrong_kind_are_refused(random_state: State, about: object) -> None:
    import json

    from safetensors.numpy import save_file

    save_file(random_state, "bad.safetensors", {"refusion-edge": json.dumps(about)})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("bad.safetensors")
    assert one_sentence(str(caught.value))


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def zipped_pickle(data: bytes, extra: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile("bad.pth", "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)


def test_pickle_bomb_does_not_go_off() -> None:
    zipped_pickle(pickle.dumps({"project_in_1.weight": _Bomb()}))
    with pytest.raises(CheckpointError, match=r"pickle that holds something else \(it refers to posix\.system\)"):
        read_checkpoint("bad.pth")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("name", "remedy"), [("model.onnx", "name the weights that it was made from"), ("x.safetensors", "copy it again")]
)
def test_a_model_is_not_taken_for_weights(name: str, remedy: str) -> None:
    Path(name).write_bytes(read_template(REFERENCE, "fp32").SerializeToString())
    with pytest.raises(CheckpointError, match=remedy) as caught:
        read_checkpoint(name)
    assert one_sentence(str(caught.value))


def test_bare_pickle_is_not_even_opened() -> None:
    Path("bad.pth").write_bytes(pickle.dumps({"project_in_1.weight": _Bomb()}, protocol=2))
    with pytest.raises(CheckpointError, match="bare pickle"):
        read_checkpoint("bad.pth")
    assert not Path("exploded").exists()


def test_tensor_larger_than_its_storage_is_refused() -> None:
    """A few bytes with a stride of zero would unfold into gigabytes."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI1\ntQ"
    for size, stride in ((b"(I100000\nI100000\nt", b"(I0\nI0\nt"), (b"(I2\nt", b"(I1\nt")):
        tensor = rebuild + b"(" + storage + b"I0\n" + size + stride + b"I00\nNtR"
        zipped_pickle(b"(dVproject_in_1.weight\n" + tensor + b"s.", {"archive/data/0": b"\0" * 4})
        with pytest.raises(CheckpointError, match="beyond its storage"):
            read_checkpoint("bad.pth")


def test_archive_that_unpacks_to_too_much_is_refused() -> None:
    with zipfile.ZipFile("bad.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (65 << 20))
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        read_checkpoint("bad.pth")


@pytest.mark.parametrize("cut", [0.02, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_truncated_files_are_refused(random_state: State, kind: str, cut: float) -> None:
    if kind == "pth":
        pytest.importorskip("torch", reason="writing .pth needs torch")
        write_pth("w.pth", Checkpoint(None, random_state))
        data = Path("w.pth").read_bytes()
    else:
        data = safetensors_bytes(Checkpoint("ir_vis", random_state))
    Path("cut").write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("cut")
    assert one_sentence(str(caught.value))


def test_flipped_bytes_never_crash(random_state: State, rng: np.random.Generator) -> None:
    """Damage in a checkpoint is refused or changes a number; it is never anything but a CheckpointError."""
    pytest.importorskip("torch", reason="writing .pth needs torch")
    write_pth("w.pth", Checkpoint(None, random_state))
    data = bytearray(Path("w.pth").read_bytes())
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, 40_000, 4):  # where the pickle lies
            damaged[position] ^= int(rng.integers(1, 256))
        Path("bad.pth").write_bytes(damaged)
        try:
            assert read_checkpoint("bad.pth").state.keys() == PARAMETERS.keys()
        except CheckpointError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("content", "words"), [(None, "got nothing"), (b"", "zero bytes"), (b"hello world, not weights", "damaged")]
)
def test_files_that_are_no_weights(content: bytes | None, words: str) -> None:
    if content is not None:
        Path("w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_checkpoint("w.safetensors")
    assert one_sentence(str(caught.value))


def test_unknown_schema_is_refused(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("refusion_edge.network.checkpoint.SCHEMA", "refusion-edge/checkpoint/99")
        write_safetensors("w.safetensors", Checkpoint("ir_vis", random_state))
    with pytest.raises(CheckpointError, match="checkpoint/99"):
        read_checkpoint("w.safetensors")


def test_writing_pth_without_torch_names_the_extra(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'refusion-edge\[train\]'"):
        write_pth("w.pth", Checkpoint(None, random_state))
    assert not Path("w.pth").exists()
