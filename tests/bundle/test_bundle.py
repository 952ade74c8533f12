"""Bundles: whole or not there, and refused in words when something does not fit."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refusion_edge.backends.tensorrt.settings import PlanSettings
from refusion_edge.bundle.folder import check_target, install_bundle, read_bundle, sha256
from refusion_edge.bundle.manifest import MANIFEST, MODEL, SCHEMA, WEIGHTS, GateNotRun, GateResult, Manifest, TensorSpec
from refusion_edge.bundle.spec import EngineSpec, parse_spec
from refusion_edge.cli import build as cli_build
from refusion_edge.errors import BundleError, DiskFullError, MisfitError, OutputError
from refusion_edge.machine import Target, this_machine
from refusion_edge.sizes import SizeRange
from tests.conftest import ROOT, files_below
from tests.raising import raises

FILES = {MODEL: b"model", WEIGHTS: b"weights"}


def manifest(**changes: Any) -> Manifest:
    shape = (1, 1, None, None)
    plain = Manifest(
        spec=EngineSpec("ir_vis", "fp16", "onnxruntime"),
        form="cpu",
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
    with raises(OutputError, "mine", remedy="--output"):
        install_bundle(target, manifest(), FILES)
    assert files_below(Path()) == before


def flip_a_byte(folder: Path) -> None:
    (folder / MODEL).write_bytes(b"modem")


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"wei")


def pipe(folder: Path) -> None:
    (folder / MODEL).unlink()
    os.mkfifo(folder / MODEL)


def cut_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the fields of a manifest."""

    def edited(folder: Path) -> None:
        fields = json.loads((folder / MANIFEST).read_text())
        change(fields)
        (folder / MANIFEST).write_text(json.dumps(fields))

    return edited


def put(**changes: Any) -> Callable[[Path], None]:
    return edit(lambda fields: fields.update(changes))


def ask(**changes: Any) -> Callable[[Path], None]:
    return edit(lambda fields: fields["spec"].update(changes))


def shape(*sides: object) -> Callable[[Path], None]:
    def change(fields: dict[str, Any]) -> None:
        for tensor in (*fields["inputs"], *fields["outputs"]):
            tensor["shape"] = list(sides)

    return edit(change)


def write(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / MANIFEST).write_bytes(data) and None


# What is done to a bundle, and what the error has to name: the file, the field or both values.
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped byte": (flip_a_byte, MODEL),
    "truncated file": (cut_short, WEIGHTS),
    "missing file": (lambda folder: (folder / MODEL).unlink(), MODEL),
    "pipe instead of a file": (pipe, MODEL),
    "truncated manifest": (cut_manifest, MANIFEST),
    "manifest without content": (write(b""), MANIFEST),
    "manifest that is a list": (write(b"[]"), MANIFEST),
    "manifest that nests without end": (write(b"[" * 200_000), MANIFEST),
    "manifest that is huge": (write(b" " * (2 << 20)), MANIFEST),
    "manifest that is no text": (write(b"\xff\xfe\x00"), MANIFEST),
    "newer schema": (put(schema="refusion-edge/bundle/99"), "bundle/99"),
    "schema of a wrong kind": (put(schema=["refusion-edge/bundle/2"]), SCHEMA),
    "no schema": (edit(lambda fields: fields.pop("schema")), SCHEMA),
    "missing field": (edit(lambda fields: fields.pop("gate")), "gate"),
    "unknown field": (put(colour="red"), "colour"),
    "not a number": (put(key=float("nan")), "NaN"),
    "infinite accuracy": (edit(lambda fields: fields["gate"].update(ssim=float("inf"))), "Infinity"),
    "no spec": (put(spec=None), MANIFEST),
    "unknown task": (ask(task="soup"), "soup"),
    "unknown back end": (ask(backend="magic"), "magic"),
    "back end that builds nothing": (ask(backend="eager"), "back end"),
    "precision that the back end does not build": (ask(precision="bf16"), "precision"),
    "back end of a wrong kind": (ask(backend=[1]), "text"),
    "unknown field of the spec": (ask(json="home"), "json"),
    "unknown setting": (ask(settings={"json": "home"}), "json"),
    "setting of a wrong kind": (ask(settings={"workspace_mib": "many"}), "workspace_mib"),
    "setting that is true instead of one": (ask(settings={"workspace_mib": True}), "workspace_mib"),
    "setting out of range": (ask(settings={"optimization_level": 77}), "77"),
    "architecture that nobody has": (ask(architectures="sm_1"), "sm_1"),
    "size that is a command": (ask(size="dynamic --json home"), "dynamic --json home"),
    "two sizes": (ask(size="64x96"), "size"),
    "unknown graph form": (put(form="curved"), "curved"),
    "graph form with control characters": (put(form="\x1b[2J\n"), r"\x1b[2J\n"),
    "hash with control characters": (put(files={MODEL: "\n", WEIGHTS: "\n"}, weights_sha256="\n"), r"\n"),
    "engine that is not there": (put(engine="engine.plan"), "engine"),
    "file outside the folder": (put(files={"../x": "0", MODEL: "0", WEIGHTS: "0"}), "file names"),
    "file name that no file can have": (put(files={"x\0": "0", MODEL: "0", WEIGHTS: "0"}), "file names"),
    "files of a wrong kind": (put(files=[MODEL]), "files"),
    "hash of a wrong kind": (put(files={MODEL: 5, WEIGHTS: "0"}), "files"),
    "tools of a wrong kind": (put(tools=[1, 2]), "tools"),
    "two hashes for the weights": (put(weights_sha256="00"), "weights"),
    "gate of a wrong kind": (edit(lambda fields: fields["gate"].update(psnr_db="high")), "gate"),
    "reference of a wrong kind": (edit(lambda fields: fields["gate"].update(reference={"a": [1, 2]})), "reference"),
    "shape of a wrong kind": (shape(1, 1, "a", None), "shape"),
    "negative shape": (shape(1, 1, -4, 10), "shape"),
    "half a shape": (shape(1, 1, None, 10), "shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(damage: str) -> None:
    change, named = DAMAGES[damage]
    install_bundle(Path("bundle"), manifest(), FILES)
    change(Path("bundle"))
    with raises(BundleError, "bundle", named):
        read_bundle("bundle")


def test_a_manifest_of_the_first_release_is_read() -> None:
    install_bundle(Path("bundle"), manifest(), FILES)
    Path("bundle", MANIFEST).write_text((ROOT / "tests" / "data" / "manifest_1.json").read_text())
    assert read_bundle("bundle").manifest == manifest(spec=EngineSpec("ir_vis", "fp16", "onnxruntime", form="cpu"))


def first_plan(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of a TensorRT bundle as release 0.1 wrote them."""
    fields: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "manifest_1.json").read_text())
    compiled = {"command": "", "device": "", "compute_capabilities": [], "sizes": "16x16:24x32:48x64", "scratch_bytes": None}
    gate = {"not_run": "no device", "simulated": fields["gate"]}
    return {
        **fields,
        "backend": "tensorrt",
        "form": "tensorrt-literal",
        "gate": gate,
        "compiled": {**compiled, "options": options},
    }


def test_the_options_of_a_plan_of_the_first_release_are_read() -> None:
    install_bundle(Path("bundle"), manifest(), FILES)
    options = {"workspace": "64", "opt-level": "3", "compute-capability": "8.6,8.9", "pixels": "", "levels": "fixed"}
    Path("bundle", MANIFEST).write_text(json.dumps(first_plan(options)))
    read = read_bundle("bundle").manifest
    assert read.spec.settings == PlanSettings(
        workspace_mib=64,
        optimization_level=3,
        compute_capabilities=("8.6", "8.9"),
        uint8_input=True,
        uint8_output="fixed",
    )
    assert (read.spec.form, read.spec.sizes_hw) == ("tensorrt-literal", SizeRange((16, 16), (24, 32), (48, 64)))
    assert isinstance(read.gate, GateNotRun)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"json": "home"}, "'json'"),
        ({"workspace": "many"}, "'many'"),
        ({"levels": "--json home"}, "'--json home'"),
        ({"weights": "; ls"}, "'weights'"),
    ],
)
def test_words_that_are_no_settings_never_reach_a_command(options: dict[str, Any], named: str) -> None:
    """Release 0.1 took options of ``build`` from the manifest as they were, files to overwrite among them."""
    install_bundle(Path("bundle"), manifest(), FILES)
    Path("bundle", MANIFEST).write_text(json.dumps(first_plan(options)))
    with raises(BundleError, MANIFEST, named):
        read_bundle("bundle")


SPECS = {
    "plain": EngineSpec("medical", "fp32", "native"),
    "fixed size": EngineSpec("ir_vis", "fp16", "onnxruntime", (48, 64)),
    "range": EngineSpec(
        "ir_vis", "fp16", "tensorrt", sizes_hw=SizeRange((16, 16), (24, 32), (48, 64)), form="tensorrt-literal"
    ),
    "settings": EngineSpec(
        "ir_vis", "int8", "tensorrt-rtx", settings=PlanSettings(512, 2, True, ("8.6",), None, True, "fixed")
    ),
    "architectures": EngineSpec("ir_vis", "fp16", "fused", architectures=(87, 110)),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_survives_the_manifest_and_its_own_command(name: str) -> None:
    """The command that is printed builds the very same engine: nothing that was asked for is lost."""
    spec = SPECS[name]
    assert parse_spec(json.loads(json.dumps(spec.to_fields()))) == spec
    program, verb, *words = shlex.split(spec.command(Path("a b; ls/weights.safetensors"), calibration=Path("c.json")))
    assert (program, verb) == ("refusion-edge", "build")
    parser = argparse.ArgumentParser()
    cli_build.add_arguments(parser)
    options = parser.parse_args(words)
    assert (options.weights, options.calib_data) == (Path("a b; ls/weights.safetensors"), "c.json")
    assert cli_build.spec_of(options).engine == spec


@pytest.mark.parametrize("what", ["nothing", "empty folder", "file"])
def test_what_is_no_bundle_is_told(what: str) -> None:
    if what == "file":
        Path("bundle").write_text("x")
    elif what == "empty folder":
        Path("bundle").mkdir()
    with raises(BundleError, "bundle", remedy="refusion-edge build"):
        read_bundle("bundle")


def test_an_engine_for_another_machine_says_so_and_how_to_rebuild() -> None:
    jetson = Target("linux", "aarch64", "NVIDIA Jetson Orin Nano")
    bundle = install_bundle(Path("bundle"), manifest(target=jetson, spec=EngineSpec("ir_vis", "fp16", "tensorrt")), FILES)
    place = "--output bundle --overwrite"
    rebuild = (
        f"build --task ir_vis --precision fp16 --backend tensorrt --size dynamic {place} --weights bundle/weights.safetensors"
    )
    with raises(MisfitError, remedy=f"refusion-edge {rebuild}", expected=jetson, got=this_machine()):
        check_target(bundle)
    assert place not in bundle.rebuild_command("onnxruntime")  # beside it


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
        with raises(DiskFullError, "bundle"):
            install_bundle(Path("bundle"), manifest(), FILES)
    assert read_bundle("bundle").manifest == manifest()
    assert [entry.name for entry in Path().iterdir()] == ["bundle"]
