"""Weights files: both formats there and back, and everything that must be refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from refusion_edge.arrays import State
from refusion_edge.errors import CheckpointError, MissingDependencyError, UsageError
from refusion_edge.network.checkpoint import (
    Checkpoint,
    official_layout,
    read_checkpoint,
    require_network,
    safetensors_bytes,
    write_pth,
    write_safetensors,
)
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.forms import REFERENCE
from refusion_edge.network.graph import read_template
from refusion_edge.network.parameters import PARAMETERS
from tests.conftest import ROOT, one_sentence
from tests.raising import raises


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


# What is done to the weights, what the problem has to name, and what was found instead.
DAMAGES: dict[str, tuple[Callable[[State], object], tuple[str, ...], object]] = {
    "missing entry": (lambda state: without(state, "FM.qkv1.weight"), ("1 missing (FM.qkv1.weight)",), ()),
    "extra entry": (
        lambda state: {**state, "head.weight": np.zeros(3, np.float32)},
        ("1 unknown (head.weight)",),
        ("head.weight",),
    ),
    "wrong shape": (
        lambda state: {**state, "project_in_1.weight": np.zeros((8, 1, 3, 3), np.float32)},
        ("project_in_1.weight",),
        (8, 1, 3, 3),
    ),
    "not a number": (
        lambda state: {**state, "FM.temperature1": np.full((8, 1, 1), np.nan, np.float32)},
        ("FM.temperature1", "NaN"),
        None,
    ),
    "disagreeing spellings": (
        lambda state: {**state, "FM.qkv1.conv.weight": state["FM.qkv1.weight"] + 1},
        ("spellings of FM.qkv1.weight",),
        None,
    ),
    "a list": (lambda _: [1, 2, 3], ("dictionary",), None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pth_is_refused_in_one_sentence(random_state: State, damage: str) -> None:
    change, named, got = DAMAGES[damage]
    save_pth(change(random_state))
    with raises(CheckpointError, *named, got=got):
        read_checkpoint("bad.pth")


def test_parameters_are_as_good_as_tensors(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    torch.save({name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in random_state.items()}, "w.pth")
    assert equal(read_checkpoint("w.pth").state, random_state)


def test_other_number_types_are_named(random_state: State) -> None:
    torch = pytest.importorskip("torch", reason="writing .pth needs torch")
    torch.save({name: torch.from_numpy(array).bfloat16() for name, array in random_state.items()}, "bad.pth")
    with raises(CheckpointError, "bad.pth", "BFloat16"):
        read_checkpoint("bad.pth")


@pytest.mark.parametrize(
    "about", [{"task": 5}, {"task": "soup"}, {"notes": {"a": [1]}}, {"notes": 3}, {"notes": {"a": 0.5}}, [1]]
)
def test_descriptions_of_a_wrong_kind_are_refused(random_state: State, about: object) -> None:
    import json

    from safetensors.numpy import save_file

    save_file(random_state, "bad.safetensors", {"refusion-edge": json.dumps(about)})
    with raises(CheckpointError, "bad.safetensors"):
        read_checkpoint("bad.safetensors")


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
    with raises(CheckpointError, "posix.system"):
        read_checkpoint("bad.pth")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(("name", "remedy"), [("model.onnx", "weights"), ("x.safetensors", "copy")])
def test_a_model_is_not_taken_for_weights(name: str, remedy: str) -> None:
    Path(name).write_bytes(read_template(REFERENCE, "fp32").SerializeToString())
    with raises(CheckpointError, name, remedy=remedy):
        read_checkpoint(name)


def test_bare_pickle_is_not_even_opened() -> None:
    Path("bad.pth").write_bytes(pickle.dumps({"project_in_1.weight": _Bomb()}, protocol=2))
    with raises(CheckpointError, "bad.pth", remedy="torch.save"):
        read_checkpoint("bad.pth")
    assert not Path("exploded").exists()


def test_tensor_larger_than_its_storage_is_refused() -> None:
    """A few bytes with a stride of zero would unfold into gigabytes."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI1\ntQ"
    for size, stride in ((b"(I100000\nI100000\nt", b"(I0\nI0\nt"), (b"(I2\nt", b"(I1\nt")):
        tensor = rebuild + b"(" + storage + b"I0\n" + size + stride + b"I00\nNtR"
        zipped_pickle(b"(dVproject_in_1.weight\n" + tensor + b"s.", {"archive/data/0": b"\0" * 4})
        with raises(CheckpointError, "bad.pth", "storage"):
            read_checkpoint("bad.pth")


def test_archive_that_unpacks_to_too_much_is_refused() -> None:
    with zipfile.ZipFile("bad.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (65 << 20))
    with raises(CheckpointError, "bad.pth", "4 MiB"):
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
    with raises(CheckpointError, "cut"):
        read_checkpoint("cut")


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
    ("content", "named", "remedy"),
    [(None, "weights file", "path"), (b"", "empty", "again"), (b"hello world, not weights", "safetensors file", "again")],
)
def test_files_that_are_no_weights(content: bytes | None, named: str, remedy: str) -> None:
    if content is not None:
        Path("w.safetensors").write_bytes(content)
    with raises(CheckpointError, "w.safetensors", named, remedy=remedy):
        read_checkpoint("w.safetensors")


def test_unknown_schema_is_refused(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("refusion_edge.network.checkpoint.SCHEMA", "refusion-edge/checkpoint/99")
        write_safetensors("w.safetensors", Checkpoint("ir_vis", random_state))
    with raises(CheckpointError, expected="refusion-edge/checkpoint/1", got="refusion-edge/checkpoint/99"):
        read_checkpoint("w.safetensors")


def test_writing_pth_without_torch_names_the_extra(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with raises(MissingDependencyError, "torch", remedy="pip install 'refusion-edge[train]'"):
        write_pth("w.pth", Checkpoint(None, random_state))
    assert not Path("w.pth").exists()


def zipped(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return buffer.getvalue()


def deep_keys() -> bytes:
    """A key of forty instructions whose hash takes 2^40 steps."""
    return b"\x80\x02}" + b"N\x85q\0" + b"".join(b"h\0h\0\x86q\0" for _ in range(40)) + b"Ns."


GREEDY = {
    "memo of 2^28 entries": lambda: b"\x80\x02}r\0\0\0\x10.",
    "memo of 2^31 entries": lambda: b"\x80\x02}r\xff\xff\xff\x7f.",
    "60 MB of empty lists": lambda: b"\x80\x02(" + b"]" * (60 << 20) + b"l.",
    "200 kB of empty dictionaries": lambda: b"\x80\x02(" + b"}" * 200_000 + b"l.",
    "a long frame": lambda: b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0f}.",
    "long bytes": lambda: b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "a long text": lambda: b"\x80\x02X\xff\xff\xff\xff.",
    "nested tuples": lambda: b"\x80\x02N" + b"\x85" * 40_000 + b".",
    "a key that is never hashed": deep_keys,
    "persistent names": lambda: b"\x80\x02}(X\1\0\0\0aNQN.",
    "huge numbers": lambda: b"I" + b"9" * 100_000 + b"\n.",
}


@pytest.mark.parametrize("kind", GREEDY)
def test_small_files_cannot_ask_for_much(kind: str) -> None:
    """In a process of its own with 1 GiB and 10 s of processor time, which the cure does not come near."""
    Path("greedy.pth").write_bytes(zipped(GREEDY[kind]()))
    script = (
        "import pathlib, resource, sys\n"
        "from refusion_edge.errors import CheckpointError\n"
        "from refusion_edge.network.checkpoint import read_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); resource.setrlimit(resource.RLIMIT_CPU, (10, 10))\n"
        "try: read_checkpoint('greedy.pth')\n"
        "except CheckpointError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (found.returncode, found.stderr) == (0, "")
    assert one_sentence(found.stdout)
    assert "damaged PyTorch checkpoint ()" not in found.stdout, "memory ran out"


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_compressions_of_torch_are_opened(compression: int) -> None:
    with zipfile.ZipFile("bad.pth", "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with raises(CheckpointError, "bad.pth"):
        read_checkpoint("bad.pth")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": ' * 5000, b'{"__metadata__": [1]}', b'{"__metadata__": {"refusion-edge": 7}}', b"[1]", b'{"a": NaN}', b"{",
        b'{"__metadata__": {"refusion-edge": "[[[[1]]]]"}}', b'{"__metadata__": {"refusion-edge": "{\\"notes\\": [1]}"}}',
        b'{"__metadata__": {"refusion-edge": "{\\"schema\\": 1e999}"}}', b'{"__metadata__": {"refusion-edge": "\\ud800"}}',
        b'{"x": {"dtype": "F32", "shape": [99999999999999], "data_offsets": [0, 4]}}',
    ],
)  # fmt: skip
def test_headers_of_safetensors_that_cannot_be_are_refused(header: bytes) -> None:
    Path("bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with raises(CheckpointError, "bad.safetensors"):
        read_checkpoint("bad.safetensors")


@pytest.mark.parametrize("length", [0, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_refused(length: int) -> None:
    Path("bad.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" * 100)
    with raises(CheckpointError, "bad.safetensors"):
        read_checkpoint("bad.safetensors")


@pytest.mark.parametrize("dtype", [np.float64, np.int32, bool])
def test_numbers_that_float32_cannot_hold_are_refused(random_state: State, dtype: type) -> None:
    from safetensors.numpy import save_file

    large = {name: array.astype(dtype) for name, array in random_state.items()}
    if dtype is np.float64:
        large["FM.qkv1.weight"].flat[0] = 1e300
    save_file(large, "bad.safetensors")
    with raises(CheckpointError, "bad.safetensors", got=None if dtype is np.float64 else np.dtype(dtype).name):
        read_checkpoint("bad.safetensors")


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
def test_weights_come_from_regular_files(name: str, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    os.mkfifo("pipe")
    code, out, err = run_cli("export", "--weights", name, "-o", "x.safetensors")
    assert (code, out) == (4, "")
    assert one_sentence(err)


def fast_state(seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in FastLayout(8, 3).shapes.items()}


def test_weights_name_their_network(random_state: State) -> None:
    for state, network in ((random_state, "refusion"), (fast_state(), "fast")):
        write_safetensors("w.safetensors", Checkpoint("ir_vis", state))
        read = read_checkpoint("w.safetensors")
        assert read.network == network
        assert equal(read.state, state)


def test_files_without_a_network_hold_the_paper_s(random_state: State) -> None:
    about = {"schema": "refusion-edge/checkpoint/1", "task": "ir_vis", "notes": {}}
    for state, fits in ((random_state, True), (fast_state(), False)):
        Path("w.safetensors").write_bytes(save(state, {"refusion-edge": json.dumps(about)}))
        if fits:
            assert read_checkpoint("w.safetensors").network == "refusion"
            continue
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint("w.safetensors")
        assert (caught.value.expected, caught.value.got) == ("refusion", "fast")


def test_an_unknown_network_is_refused(random_state: State) -> None:
    about = {"schema": "refusion-edge/checkpoint/1", "network": "slow", "task": "ir_vis", "notes": {}}
    Path("w.safetensors").write_bytes(save(random_state, {"refusion-edge": json.dumps(about)}))
    with pytest.raises(CheckpointError, match="slow"):
        read_checkpoint("w.safetensors")


def test_weights_of_another_network_than_asked_for_are_refused() -> None:
    checkpoint = Checkpoint("ir_vis", fast_state())
    require_network(checkpoint, None, "w")
    require_network(checkpoint, "fast", "w")
    with pytest.raises(CheckpointError) as caught:
        require_network(checkpoint, "refusion", "w")
    assert (caught.value.expected, caught.value.got) == ("refusion", "fast")


def test_a_layout_that_nobody_runs_is_refused() -> None:
    state = fast_state()
    state["layers.0.weight"] = np.zeros((12, 8, 3, 3), np.float32)
    with pytest.raises(CheckpointError, match="channels = 12"):
        safetensors_bytes(Checkpoint("ir_vis", state))
    missing = fast_state()
    del missing["statistics.0.bias"]
    with pytest.raises(CheckpointError, match=r"statistics\.0\.bias"):
        safetensors_bytes(Checkpoint("ir_vis", missing))


def test_only_the_paper_s_network_has_an_official_layout() -> None:
    with pytest.raises(UsageError) as caught:
        write_pth("w.pth", Checkpoint("ir_vis", fast_state()))
    assert caught.value.got == "fast"
    assert not Path("w.pth").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_left_out_and_said(random_state: State, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    Path("w.safetensors").write_bytes(save({prefix + name: array for name, array in random_state.items()}))
    assert equal(read_checkpoint("w.safetensors").state, random_state)
    assert [("w.safetensors" in record.message, record.levelname) for record in caplog.records] == [(True, "WARNING")]


def test_a_name_with_and_without_a_prefix_is_refused(random_state: State) -> None:
    name = next(iter(random_state))
    Path("w.safetensors").write_bytes(save(random_state | {f"module.{name}": random_state[name]}))
    with raises(CheckpointError, "w.safetensors", name):
        read_checkpoint("w.safetensors")


def test_bfloat16_weights_are_read(random_state: State) -> None:
    """The upper halves of float32 values, in a file written by hand."""
    halves = {name: (array.view(np.uint32) >> 16).astype("<u2") for name, array in random_state.items()}
    header, data = {}, b""
    for name, half in halves.items():
        header[name] = {"dtype": "BF16", "shape": list(half.shape), "data_offsets": [len(data), len(data) + half.nbytes]}
        data += half.tobytes()
    text = json.dumps(header).encode()
    Path("w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    read = read_checkpoint("w.safetensors").state
    for name, half in halves.items():
        assert np.array_equal(read[name], (half.astype(np.uint32) << 16).view(np.float32)), name
