"""Bundles: whole or not there, and refused in words when something does not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refusion_edge.bundle.folder import check_target, install_bundle, read_bundle, sha256
from refusion_edge.bundle.manifest import MANIFEST, MODEL, WEIGHTS, GateResult, Manifest, TensorSpec
from refusion_edge.errors import BundleError, OutputError
from refusion_edge.machine import Target, this_machine
from tests.conftest import ROOT, files_below, one_sentence

FILES = {MODEL: b"model", WEIGHTS: b"weights"}


def manifest(**changes: Any) -> Manifest:
    shape = (1, 1, None, None)
    plain = Manifest(
        task="ir_vis",
        precision="fp16",
        backend="onnxruntime",
        form="onnxruntime",
        engine=MODEL,
        key="0" * 64,
        target=Target(),
        weights_sha256=sha256(FILES[WEIGHTS]),
        inputs=(TensorSpec("a", "float32", shape), TensorSpec("b", "float32", shape)),
        outputs=(TensorSpec("fused", "float32", shape),),
        gate=GateResult(psnr_db=80.0, ssim=0.9999, max_error=0.1, pairs=2, pairs_sha256="1" * 64),
        tools={"onnx": "1.0"},
        files={name: sha256(data) for name, data in FILES.items()},
    )
    return dataclasses.replace(plain, **changes)


def test_there_and_back() -> None:
    install_bundle(Path("out/bundle"), manifest(), FILES)
    bundle = read_bundle("out/bundle")
    assert bundle.manifest == manifest()
    assert bundle.read(MODEL) == b"model"
    assert files_below(Path("out")) == ["bundle", f"bundle/{MANIFEST}", f"bundle/{MODEL}", f"bundle/{WEIGHTS}"]


def test_manifest_is_the_golden_file() -> None:
    golden = ROOT / "tests" / "data" / "manifest.json"
    assert manifest().to_json() == golden.read_text()


def test_an_older_bundle_is_replaced_as_a_whole() -> None:
    install_bundle(Path("bundle"), manifest(), FILES)
    changed = {**FILES, MODEL: b"other"}
    newer = manifest(files={name: sha256(data) for name, data in changed.items()})
    install_bundle(Path("bundle"), newer, changed)
    assert read_bundle("bundle").read(MODEL) == b"other"
    assert files_below(Path()) == ["bundle", f"bundle/{MANIFEST}", f"bundle/{MODEL}", f"bundle/{WEIGHTS}"]


@pytest.mark.parametrize("thing", ["folder", "file", "link"])
def test_something_else_is_never_replaced(thing: str) -> None:
    target = Path("mine")
    if thing == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    elif thing == "file":
        target.write_text("years of work")
    else:
        target.symlink_to("nowhere")
    before = files_below(Path())
    with pytest.raises(OutputError, match="something else") as caught:
        install_bundle(target, manifest(), FILES)
    assert one_sentence(str(caught.value))
    assert files_below(Path()) == before


def flip_a_byte(folder: Path) -> None:
    (folder / MODEL).write_bytes(b"modem")


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"wei")


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**fields, **changes}))

    return change


def drop(field: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / MANIFEST).read_text())
        del fields[field]
        (folder / MANIFEST).write_text(json.dumps(fields))

    return change


def cut_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def edit_gate(folder: Path) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    fields["gate"]["psnr_db"] = "high"
    (folder / MANIFEST).write_text(json.dumps(fields))


def edit_shape(*shape: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / MANIFEST).read_text())
        for spec in (*fields["inputs"], *fields["outputs"]):
            spec["shape"] = list(shape)
        (folder / MANIFEST).write_text(json.dumps(fields))

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped byte": (flip_a_byte, "SHA-256"),
    "truncated file": (cut_short, r"3 bytes\); it was changed or cut short"),
    "missing file": (lambda folder: (folder / MODEL).unlink(), "No such file"),
    "truncated manifest": (cut_manifest, "breaks off"),
    "manifest without content": (lambda folder: (folder / MANIFEST).write_text(""), "breaks off"),
    "manifest that is a list": (lambda folder: (folder / MANIFEST).write_text("[]"), "schema"),
    "manifest that nests without end": (lambda folder: (folder / MANIFEST).write_text("[" * 200_000), "breaks off or is none"),
    "manifest that is no text": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"), "readable"),
    "newer schema": (edit(schema="refusion-edge/bundle/99"), "bundle/99"),
    "no schema": (drop("schema"), "got none"),
    "missing field": (drop("gate"), "got others"),
    "unknown field": (edit(colour="red"), "got others"),
    "not a number": (edit(key=float("nan")), "NaN is not JSON"),
    "unknown task": (edit(task="soup"), "one of the tasks"),
    "unknown back end": (edit(backend="magic"), "back end that builds"),
    "back end that builds nothing": (edit(backend="eager"), "back end that builds"),
    "precision that the back end does not build": (edit(precision="bf16"), "a precision that onnxruntime builds"),
    "unknown graph form": (edit(form="curved"), "one of the graph forms"),
    "back end of a wrong kind": (edit(backend=[1]), "text for names"),
    "engine that is not there": (edit(engine="engine.plan"), "hashes of the engine"),
    "file outside the folder": (edit(files={"../x": "0", MODEL: "0", WEIGHTS: "0"}), "plain file names"),
    "file name that no file can have": (edit(files={"x\0": "0", MODEL: "0", WEIGHTS: "0"}), "plain file names"),
    "files of a wrong kind": (edit(files=[MODEL]), "names and texts"),
    "hash of a wrong kind": (edit(files={MODEL: 5, WEIGHTS: "0"}), "names and texts"),
    "tools of a wrong kind": (edit(tools=[1, 2]), "names and texts"),
    "two hashes for the weights": (edit(weights_sha256="00"), "one hash for the weights"),
    "gate of a wrong kind": (edit_gate, "numbers for the gate"),
    "shape of a wrong kind": (edit_shape(1, 1, "a", None), "shape"),
    "negative shape": (edit_shape(1, 1, -4, 10), "shape"),
    "half a shape": (edit_shape(1, 1, None, 10), "shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_sentence(damage: str) -> None:
    change, words = DAMAGES[damage]
    install_bundle(Path("bundle"), manifest(), FILES)
    change(Path("bundle"))
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle("bundle")
    assert one_sentence(str(caught.value))
    assert "bundle" in str(caught.value)


@pytest.mark.parametrize("what", ["nothing", "empty folder", "file"])
def test_what_is_no_bundle_is_told(what: str) -> None:
    if what == "file":
        Path("bundle").write_text("x")
    elif what == "empty folder":
        Path("bundle").mkdir()
    with pytest.raises(BundleError, match="refusion-edge build") as caught:
        read_bundle("bundle")
    assert one_sentence(str(caught.value))


def test_an_engine_for_another_machine_says_so_and_how_to_rebuild() -> None:
    jetson = Target("linux", "aarch64", "NVIDIA Jetson Orin Nano")
    bundle = install_bundle(Path("bundle"), manifest(target=jetson, backend="tensorrt"), FILES)
    with pytest.raises(BundleError) as caught:
        check_target(bundle)
    message = str(caught.value)
    assert one_sentence(message)
    assert f"this machine ({this_machine()})" in message
    assert "built for linux/aarch64 with NVIDIA Jetson Orin Nano" in message
    rebuild = "build --task ir_vis --precision fp16 --backend tensorrt --size dynamic --weights bundle/weights.safetensors"
    assert f"rebuild it here: refusion-edge {rebuild}." in message


def test_targets_fit_by_field() -> None:
    here = Target("linux", "aarch64", "Orin")
    assert Target().fits(here)
    assert Target("linux", "aarch64").fits(here)
    assert not Target("linux", "x86_64").fits(here)
    assert not Target(device="Thor").fits(here)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_builds_are_swept_away() -> None:
    """Only those of dead processes and of this name; an old bundle that was moved aside comes back first."""
    pid = dead_pid()
    Path(f".bundle.partial-{pid}").mkdir()
    Path(f".bundle.partial-{os.getppid()}").mkdir()
    Path(f".other.partial-{pid}").mkdir()
    install_bundle(Path("bundle"), manifest(), FILES)
    assert sorted(entry.name for entry in Path().iterdir()) == sorted(
        [".bundle.partial-" + str(os.getppid()), f".other.partial-{pid}", "bundle"]
    )


def test_a_bundle_moved_aside_by_a_killed_build_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    install_bundle(Path("bundle"), manifest(), FILES)
    Path("bundle").rename(f".bundle.replaced-{dead_pid()}")

    def no_room(*_args: object, **_options: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", no_room)
        with pytest.raises(OutputError, match="disk is full") as caught:
            install_bundle(Path("bundle"), manifest(), FILES)
    assert one_sentence(str(caught.value))
    assert read_bundle("bundle").manifest == manifest()
    assert [entry.name for entry in Path().iterdir()] == ["bundle"]
