"""The command line: every verb, and every user error in one sentence with its exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import refusion_edge
from refusion_edge.accuracy.gate import LIMITS, Limits
from refusion_edge.arrays import Array, State
from refusion_edge.backends import native
from refusion_edge.backends.registry import Status
from refusion_edge.cli import EXIT_CODES, VERBS
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.checkpoint import Checkpoint, write_safetensors
from refusion_edge.network.family import NETWORKS
from refusion_edge.network.weights import shipped_tasks
from refusion_edge.stream.sources import v4l2_device
from refusion_edge.stream.sources.v4l2_device import Camera, Mode
from refusion_edge.tasks import TASKS
from tests.conftest import ROOT, files_below, one_sentence

pytestmark = pytest.mark.usefixtures("small_samples")

Run = Callable[..., tuple[int, str, str]]
Picture = Callable[..., Array]


def test_help_lists_every_verb_and_exit_code(run_cli: Run) -> None:
    code, out, _ = run_cli("--help")
    assert code == 0
    for verb in VERBS:
        assert re.search(rf"^    {verb}\s", out, re.MULTILINE), verb
    assert EXIT_CODES.strip() in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run_cli: Run, verb: str) -> None:
    code, out, _ = run_cli(verb, "--help")
    assert code == 0
    assert out.startswith(f"usage: refusion-edge {verb}")


def test_version_names_the_back_ends_that_work_here(run_cli: Run) -> None:
    code, out, err = run_cli("--version")
    first, second, *rest = out.splitlines()
    assert (code, first, err) == (0, f"refusion-edge {refusion_edge.__version__}", "")
    usable = {
        name: backend
        for name, backend in json.loads(run_cli("doctor", "--json", "-")[1])["backends"].items()
        if backend["usable"]
    }
    assert usable
    assert all(f"{name} ({backend['reason']})" in second for name, backend in usable.items())
    assert "tensorrt (" not in second
    assert [line.partition(":")[0] for line in rest] == ([] if "native" in usable else ["without native"])


def test_an_installation_without_the_native_kernels_says_so(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_installed", lambda _: False)
    remedy = "pip install . -Cwheel.cmake=true"
    assert remedy in run_cli("--version")[1].splitlines()[2]
    found = json.loads(run_cli("doctor", "--json", "-")[1])["backends"]["native"]
    assert not found["usable"]
    assert remedy in found["fix"]
    street = sample_paths("ir_vis")[1]
    code, out, _ = run_cli("fuse", street.a, street.b, "-o", "fused.png")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("Back end: ")]
    assert f"native ({found['reason']})" in line
    assert "refusion-edge doctor" in line


def test_the_verb_help_is_the_option(run_cli: Run) -> None:
    assert run_cli("help", "fuse") == run_cli("fuse", "--help")
    assert run_cli("help", "align", "auto") == run_cli("align", "auto", "--help")
    assert run_cli("help") == run_cli("--help")
    code, _, err = run_cli("help", "strem")
    assert (code, one_sentence(err), "'stream'" in err) == (2, True, True)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("buidl",), "'build'"),
        (("build", "--precison", "fp16"), "'--precision'"),
        (("build", "--task", "ir_viz"), "'ir_vis'"),
        (("fuse", "--gray"), "required"),
        (("fuse", "a.png", "b.png", "c.png", "-o", "x"), "quote"),
        (("build", "--size", "big"), "HEIGHTxWIDTH"),
        (("build", "--size", "9" * 5000 + "x640"), "HEIGHTxWIDTH"),
        (("fuse", "a.png", "b.png", "-o", "c.gif"), "ending in"),
        (("fuse", "a.png", "b.png", "-o", "c.png", "--threads", "0"), "from 1 to 256"),
        (("fuse", "a.png", "b.png", "-o", "c.png", "--threads", "99999"), "from 1 to 256"),
        (("export", "-o", "x.onnx"), "--task or --weights"),
        (("export", "--task", "medical", "-o", "x.bin"), ".safetensors"),
        (("verify", "x", "--a", "y"), "--a and --b"),
        ((), "required"),
    ],
)
def test_usage_errors(run_cli: Run, words: tuple[str, ...], hint: str) -> None:
    code, out, err = run_cli(*words)
    assert (code, out) == (2, "")
    assert hint in err
    assert len(err.strip().splitlines()) == 1
    assert files_below(Path()) == []


def make_pair(picture: Picture, name: str = "x", size_hw: tuple[int, int] = (40, 60)) -> None:
    write_image(f"ir/{name}.png", picture(*size_hw))
    write_image(f"vis/{name}.png", picture(*size_hw, 3))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_fuse_two_files(run_cli: Run, picture: Picture, suffix: str) -> None:
    make_pair(picture)
    code, out, err = run_cli("fuse", "ir/x.png", "vis/x.png", "-o", f"out/fused.{suffix}")
    assert (code, err) == (0, "")
    assert f"wrote out/fused.{suffix} (40x60, color)" in out
    assert read_image(f"out/fused.{suffix}").shape == (40, 60, 3)


def test_fuse_gray_fixed_medical_with_official_style_weights(run_cli: Run, picture: Picture, random_state: State) -> None:
    make_pair(picture)
    write_safetensors("w.safetensors", Checkpoint("medical", random_state))
    code, out, _ = run_cli(
        "fuse",
        "ir/x.png",
        "vis/x.png",
        "-o",
        "f.png",
        "--weights",
        "w.safetensors",
        "--task",
        "medical",
        "--gray",
        "--range",
        "fixed",
    )
    assert code == 0
    assert "grayscale" in out
    assert read_image("f.png").shape == (40, 60)


def test_fuse_folders_reports_what_it_leaves_out_and_goes_on(run_cli: Run, picture: Picture) -> None:
    for name in ("1", "2", "3"):
        make_pair(picture, name)
    write_image("vis/2.png", picture(41, 60))
    Path("vis/3.png").write_bytes(Path("vis/3.png").read_bytes()[:500])
    write_image("ir/lonely.png", picture(20, 20))
    code, out, err = run_cli("fuse", "ir", "vis", "-o", "fused", "--format", "jpg")
    assert code == 4
    assert "wrote 1 of 3 fused images to fused" in out
    assert "ir/lonely.png" in err
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 2
    assert "pair 2" in errors[0]
    assert "pair 3" in errors[1]
    assert files_below(Path("fused")) == ["1.jpg"]


def test_fuse_patterns(run_cli: Run, picture: Picture) -> None:
    for name in ("day1", "night1", "night2"):
        make_pair(picture, name)
    code, _, _ = run_cli("fuse", "ir/night*.png", "vis/night*.png", "-o", "fused")
    assert code == 0
    assert files_below(Path("fused")) == ["night1.png", "night2.png"]


def bad_fuse_inputs(picture: Picture) -> dict[str, tuple[tuple[str, ...], str]]:
    make_pair(picture)
    make_pair(picture, "y", (44, 60))
    whole = Path("ir/x.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("hello")
    Path("clip.mp4").write_bytes(b"\0" * 64)
    write_image("flat.png", np.full((40, 60), 7, np.uint8))
    write_image("tiny.png", picture(6, 6))
    write_image("other/z.png", picture(40, 60))
    return {
        "missing": (("none.png", "vis/x.png"), "none.png"),
        "truncated": (("cut.png", "vis/x.png"), "cut.png"),
        "zero bytes": (("empty.png", "vis/x.png"), "zero bytes"),
        "no image": (("text.png", "vis/x.png"), "damaged"),
        "video": (("clip.mp4", "vis/x.png"), "video"),
        "sizes": (("ir/x.png", "vis/y.png"), "40x60 and b is 44x60"),
        "constant": (("flat.png", "vis/x.png"), "source "),
        "too small": (("tiny.png", "tiny.png"), "at least 8x8"),
        "no common stem": (("ir", "other"), "other (z)"),
        "file and folder": (("ir", "vis/x.png"), "file vis/x.png"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "truncated",
        "zero bytes",
        "no image",
        "video",
        "sizes",
        "constant",
        "too small",
        "no common stem",
        "file and folder",
    ],
)
def test_fuse_bad_input(run_cli: Run, picture: Picture, case: str) -> None:
    words, hint = bad_fuse_inputs(picture)[case]
    before = files_below(Path())
    code, out, err = run_cli("fuse", *words, "-o", "out.png")
    assert (code, out) == (4, "")
    assert hint in err
    assert one_sentence(err)
    assert files_below(Path()) == before


@pytest.mark.parametrize("output", ["ir/x.png", "vis/../vis/x.png", "link.png"])
def test_fuse_never_overwrites_a_source(run_cli: Run, picture: Picture, output: str) -> None:
    make_pair(picture)
    Path("link.png").symlink_to("ir/x.png")
    before = Path("ir/x.png").read_bytes()
    code, _, err = run_cli("fuse", "ir/x.png", "vis/x.png", "-o", output)
    assert code == 2
    assert output in err
    assert one_sentence(err)
    code, _, err = run_cli("fuse", "ir", "vis", "-o", "ir")
    assert code == 2
    assert one_sentence(err)
    assert Path("ir/x.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected", "hint"),
    [
        (("x" * 300, "vis/x.png", "-o", "o.png"), 4, "x" * 40),
        (("", "vis/x.png", "-o", "o.png"), 2, "empty"),
        (("ir/x.png", "vis/x.png", "-o", ""), 2, "empty"),
        (("ir/x.png", "vis/x.png", "-o", "o.png", "--bundle", ""), 2, "empty"),
        (("ir/x.png", "vis/x.png", "-o", "o.png", "--weights", ""), 2, "empty"),
    ],
)
def test_fuse_with_names_that_are_none(
    run_cli: Run, picture: Picture, words: tuple[str, ...], expected: int, hint: str
) -> None:
    make_pair(picture)
    code, _, err = run_cli("fuse", *words)
    assert code == expected
    assert hint in err
    assert len(err.strip().splitlines()) == 1


def test_fuse_nan_tiff(run_cli: Run, picture: Picture) -> None:
    import cv2

    make_pair(picture)
    thermal = picture(40, 60, 1, np.float32)
    thermal[2, 2] = np.nan
    cv2.imwrite("nan.tiff", thermal)
    code, _, err = run_cli("fuse", "nan.tiff", "vis/x.png", "-o", "out.png")
    assert code == 0
    assert "1 pixel)" in err
    # Where the infrared has no value, the fused image shows the visible one.
    visible = read_image("vis/x.png")
    assert np.abs(read_image("out.png")[2, 2].astype(int) - visible[2, 2]).max() <= 3


def test_build_verify_inspect_fuse_with_a_bundle(run_cli: Run, picture: Picture) -> None:
    code, out, err = run_cli("build", "--task", "ir_vis", "--precision", "fp16", "-o", "bundle")
    assert (code, err) == (0, "")
    for words in ("auto chose onnxruntime", "tensorrt", "Accuracy gate passed", "street", "Bundle: bundle", "Next:"):
        assert words in out

    code, out, _ = run_cli("build", "--task", "ir_vis", "--precision", "fp16", "-o", "bundle", "--json", "-")
    assert code == 0
    document = json.loads(out)
    assert document["cached"] is True
    assert document["gate"]["psnr_db"] > document["limits"]["psnr_db"]

    code, out, _ = run_cli("verify", "bundle")
    assert code == 0
    assert "PASSED: fp16 on onnxruntime" in out
    code, _, err = run_cli("verify", "bundle", "--proxy")
    assert code == 2
    assert "leave --proxy out" in err
    assert one_sentence(err)

    make_pair(picture)
    code, out, _ = run_cli("verify", "bundle", "--a", "ir", "--b", "vis", "--json", "report.json")
    assert code == 0
    report = json.loads(Path("report.json").read_text())
    assert report["passed"] is True
    assert report["pairs"]["x"]["psnr_db"] > report["limits"]["psnr_db"]

    code, out, _ = run_cli("inspect", "bundle", "--json", "-")
    described = json.loads(out)
    assert (described["task"], described["precision"], described["runs_here"]) == ("ir_vis", "fp16", "yes")
    code, out, _ = run_cli("inspect", "bundle")
    assert re.search(r"^rebuild +refusion-edge build --task ir_vis --precision fp16", out, re.MULTILINE)

    code, _, _ = run_cli("fuse", "ir/x.png", "vis/x.png", "-o", "f.png", "--bundle", "bundle")
    assert code == 0
    code, _, err = run_cli("fuse", "ir/x.png", "vis/x.png", "-o", "g.png", "--bundle", "bundle", "--task", "medical")
    assert code == 4
    assert one_sentence(err)


def test_a_bundle_that_does_not_fit_is_rebuilt_only_when_told_to(run_cli: Run, picture: Picture) -> None:
    make_pair(picture)
    fuse = ("fuse", "ir/x.png", "vis/x.png", "-o", "f.png", "--overwrite", "--bundle", "a bundle")
    build = ("--task", "ir_vis", "--precision", "fp32", "--backend", "onnxruntime", "-o", "a bundle")
    assert run_cli("build", *build)[0] == 0
    manifest = Path("a bundle") / "manifest.json"
    fitting = manifest.read_text()
    assert run_cli(*fuse, "--rebuild")[0] == 0
    assert manifest.read_text() == fitting

    document = json.loads(fitting)
    document["target"] = {"system": "linux", "architecture": "riscv64", "device": "any"}
    manifest.write_text(json.dumps(document))
    Path("f.png").unlink()
    code, _, err = run_cli(*fuse)
    assert code == 4
    assert one_sentence(err)
    assert not Path("f.png").exists()

    code, _, err = run_cli(*fuse, "--rebuild")
    assert code == 0
    assert "rebuilding" in err
    assert Path("f.png").exists()
    assert manifest.read_text() == fitting
    assert run_cli(*fuse)[0] == 0


def test_what_cannot_be_rebuilt_stays_as_it_was(run_cli: Run, picture: Picture) -> None:
    make_pair(picture)
    assert run_cli("build", "--precision", "fp32", "--backend", "onnxruntime", "--size", "64x96", "-o", "bundle")[0] == 0
    manifest = Path("bundle") / "manifest.json"
    document = json.loads(manifest.read_text())
    document["target"] = {"system": "linux", "architecture": "aarch64", "device": "NVIDIA Jetson Orin Nano"}
    document["spec"] |= {"backend": "tensorrt"}
    manifest.write_text(json.dumps(document))
    before = manifest.read_text()
    code, _, err = run_cli("fuse", "ir/x.png", "vis/x.png", "-o", "f.png", "--bundle", "bundle", "--rebuild")
    assert code == 3
    assert one_sentence(err.splitlines()[-1])
    assert manifest.read_text() == before
    code, _, err = run_cli("fuse", "ir/x.png", "vis/x.png", "-o", "f.png", "--rebuild")
    assert code == 2
    assert one_sentence(err)


def test_verify_fails_with_exit_code_1(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli("build", "--task", "medical", "--precision", "fp16", "-o", "bundle", "--size", "32x32")[0] == 0
    monkeypatch.setitem(LIMITS, "fp16", Limits(psnr_db=300, ssim=1, max_error=0))
    code, out, _ = run_cli("verify", "bundle")
    assert code == 1
    assert "FAILED" in out


def test_a_failed_gate_is_exit_code_1(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "fp16", Limits(psnr_db=300, ssim=1, max_error=0))
    code, _, err = run_cli("build", "--task", "medical", "--size", "32x32")
    assert code == 1
    assert one_sentence(err)


@pytest.mark.parametrize(
    ("words", "expected", "hint"),
    [
        (("build", "--backend", "tensorrt"), 3, "tensorrt"),
        (("build", "--backend", "tensorflow"), 2, "tensorflow"),
        (("build", "--weights", "none.pth"), 4, "none.pth"),
        (("verify", "nowhere"), 4, "engine bundle"),
        (("inspect", "nowhere"), 4, "engine bundle"),
        (("inspect", "junk.pth"), 4, "damaged"),
        (("build", "-o", "junk.pth"), 4, "junk.pth"),
        (("export", "--weights", "junk.pth", "-o", "x.safetensors"), 4, "damaged"),
    ],
)
def test_other_bad_input(run_cli: Run, words: tuple[str, ...], expected: int, hint: str) -> None:
    Path("junk.pth").write_text("junk")
    code, _, err = run_cli(*words)
    assert code == expected
    assert hint in err
    assert one_sentence(err)
    assert files_below(Path()) == ["junk.pth"]


def test_doctor_shows_each_camera_with_its_formats(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = Mode("MJPG", 1280, 720, 30.0), Mode("MJPG", 1280, 720, 15.0), Mode("Y16 ", 160, 120, 9.0), Mode("GREY", 8, 8, None)
    cameras = (
        Camera("/dev/video0", "/dev/v4l/by-id/usb-Maker_Cam-video-index0", "Maker Cam", modes),
        Camera("/dev/video2", None, "", (), "Permission denied"),
    )
    monkeypatch.setattr(v4l2_device, "find_cameras", lambda: cameras)
    code, out, _ = run_cli("doctor")
    assert code == 0
    text = " ".join(out.split())
    for word in (
        "usb-Maker_Cam-video-index0",
        "MJPG 720x1280@30",
        "Y16 120x160@9",
        "GREY 8x8",
        "/dev/video2",
        "Permission denied",
    ):
        assert word in text
    assert "@15" not in text
    document = json.loads(run_cli("doctor", "--json", "-")[1])
    assert document["cameras"][0]["modes"][1] == {"fourcc": "MJPG", "width": 1280, "height": 720, "rate_hz": 15.0}
    assert document["cameras"][1]["problem"] == "Permission denied"


def test_doctor_changes_nothing_and_names_every_back_end(run_cli: Run) -> None:
    code, out, _ = run_cli("doctor")
    assert code == 0
    document = json.loads(run_cli("doctor", "--json", "-")[1])
    for name, part in document["streams"].items():
        assert re.search(rf"^{name} +{'yes' if part['usable'] else 'no'} ", out, re.MULTILINE), name
    assert set(document["extras"]) >= {"train", "stream", "eval"}
    for name, extra in document["extras"].items():
        assert extra["installed"] == (not extra["missing"])
        assert re.search(rf"^{name} +{'yes' if extra['installed'] else 'no'} ", out, re.MULTILINE), name
    for name, backend in document["backends"].items():
        answer = "yes" if backend["usable"] else "builds only" if backend["builds"] else "no"
        assert re.search(rf"^{name} +{answer} ", out, re.MULTILINE)
    assert document["backends"]["onnxruntime"]["usable"]
    assert files_below(Path("..")) == ["work"]


def test_export_converts_there_and_back(run_cli: Run, random_state: State) -> None:
    pytest.importorskip("torch", reason="writing .pth needs torch")
    write_safetensors("w.safetensors", Checkpoint("medical", random_state))
    assert run_cli("export", "--weights", "w.safetensors", "-o", "w.pth")[0] == 0
    assert run_cli("export", "--weights", "w.pth", "--task", "medical", "-o", "again.safetensors")[0] == 0
    assert Path("again.safetensors").read_bytes() == Path("w.safetensors").read_bytes()


def test_fuse_and_export_replace_a_file_only_when_told_to(run_cli: Run, picture: Picture) -> None:
    make_pair(picture)
    for words in (
        ("fuse", "ir/x.png", "vis/x.png", "--network", "fast", "-o", "f.png"),
        ("export", "--task", "medical", "-o", "w.safetensors"),
    ):
        Path(words[-1]).write_bytes(b"mine")
        code, _, err = run_cli(*words)
        assert (code, one_sentence(err), "--overwrite" in err) == (4, True, True)
        assert Path(words[-1]).read_bytes() == b"mine"
        assert run_cli(*words, "--overwrite")[0] == 0
        assert Path(words[-1]).read_bytes() != b"mine"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's exporter warns about its own internals
def test_export_onnx_prints_parity(run_cli: Run) -> None:
    for package in ("torch", "onnxscript", "onnxsim"):
        pytest.importorskip(package, reason="tracing needs the extra 'export'")
    code, out, _ = run_cli("export", "--task", "medical", "-o", "x.onnx", "--size", "48x64")
    assert code == 0
    assert re.search(r"brain +48x64 +\d\.\d\de-0[5-9]", out)
    assert Path("x.onnx").stat().st_size > 200_000


def test_export_onnx_without_torch_names_the_extra(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    code, _, err = run_cli("export", "--task", "medical", "-o", "x.onnx")
    assert code == 3
    assert "pip install 'refusion-edge[export]'" in err
    assert len(err.strip().splitlines()) == 1


def test_demo_writes_results_and_montage(run_cli: Run) -> None:
    code, out, _ = run_cli("demo", "-o", "demo")
    assert code == 0
    assert "Montage: demo/montage.png" in out
    pairs = {
        network: {Path(path.a).stem for task in shipped_tasks(network) for path in sample_paths(task)} for network in NETWORKS
    }
    files = files_below(Path("demo/fused"))
    assert sum("-fast" in name for name in files) == len(pairs["fast"]) > 0
    assert sum("-fast" not in name for name in files) == len(pairs["refusion"]) == 5
    assert {line.split()[3] for line in out.splitlines() if line.startswith("ir_vis")} == set(NETWORKS)
    height, width = read_image("demo/montage.png").shape[:2]
    assert width == 8 + 4 * (384 + 8)
    assert height > 1200


def test_demo_runs_on_every_back_end_in_turn(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("ir_vis", "multi_focus", "multi_exposure"):
        monkeypatch.delitem(TASKS, task)
    monkeypatch.setattr(
        "refusion_edge.backends.registry.status", lambda name: Status(name in ("onnxruntime", "eager"), "because")
    )
    pytest.importorskip("torch", reason="one of two back ends")
    code, out, _ = run_cli("demo", "--backend", "all", "--network", "refusion", "-o", "demo")
    assert code == 0
    assert files_below(Path("demo/fused")) == ["medical-brain-eager.png", "medical-brain-onnxruntime.png"]
    first, second = (read_image(f"demo/fused/medical-brain-{name}.png").astype(int) for name in ("eager", "onnxruntime"))
    assert np.abs(first - second).max() <= 1
    assert [line.split()[5] for line in out.splitlines() if line.startswith("medical")] == ["onnxruntime", "eager"]
    assert read_image("demo/montage.png").shape[0] < 700
    code, _, err = run_cli("demo", "--backend", "tensorrt", "-o", "other")
    assert (code, one_sentence(err), Path("other").exists()) == (3, True, False)


def test_a_closed_pipe_ends_quietly() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m refusion_edge doctor | head -n 0"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_output_that_cannot_be_written(run_cli: Run, picture: Picture) -> None:
    make_pair(picture)
    Path("file").write_text("in the way")
    code, _, err = run_cli("fuse", "ir/x.png", "vis/x.png", "-o", "file/x.png")
    assert code == 4
    assert one_sentence(err)
    street = sample_paths("ir_vis")[1]
    code, _, err = run_cli("fuse", street.a.parent, street.b.parent, "-o", "file")
    assert code == 2


@pytest.mark.parametrize(("daemon", "printed"), [(True, "out\n"), (False, "out\nend of the interpreter\n")])
def test_a_worker_that_hangs_does_not_change_the_exit_code(daemon: bool, printed: str) -> None:
    code = f"""
import atexit, threading, time
from refusion_edge import cli

def command():
    threading.Thread(target=time.sleep, args=({60 if daemon else 0},), daemon={daemon}).start()
    print("out")
    return 5

cli.main = command
atexit.register(print, "end of the interpreter")
cli.leave()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (5, printed, "")


def test_an_interrupt_while_python_compiles_text_ends_with_the_exit_code() -> None:
    """As the import of a data class does: Python would remember it, and end by SIGINT after all."""
    Path("program.py").write_text("""
import sys
from refusion_edge.cli import doctor, leave

doctor.run = lambda _options: exec("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)")
sys.argv = ["refusion-edge", "doctor"]
leave()
""")
    words = [sys.executable, "-m", "program"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert found.returncode == 130
    assert one_sentence(found.stderr)


@pytest.mark.parametrize("error", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | true"])
@pytest.mark.parametrize(
    ("ending", "code"), [("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 130), ("raise InputError('a', 'b')", 4)]
)
def test_the_exit_code_does_not_depend_on_standard_error(error: str, ending: str, code: int) -> None:
    Path("program.py").write_text(f"""
import os, signal, sys, time
from refusion_edge.cli import doctor, leave
from refusion_edge.errors import InputError

def run(_options):
    {ending}

doctor.run = run
sys.argv = ["refusion-edge", "doctor"]
leave()
""")
    words = ["bash", "-c", f"set -o pipefail; {shlex.quote(sys.executable)} program.py {error}"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (code, "", "")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_python_drops_is_not_lost(number: str) -> None:
    code = f"""
import os, signal, sys, time, weakref
from refusion_edge.cli import doctor, main

class Thing:
    pass

def interrupted_in_a_callback(_):
    os.kill(os.getpid(), signal.{number})
    for _ in range(1000):
        pass
    print("never")

def run(options):
    thing = Thing()
    watch = weakref.ref(thing, interrupted_in_a_callback)
    del thing
    print("went on", flush=True)
    time.sleep(60)

doctor.run = run
sys.exit(main(["doctor"]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (found.returncode, found.stdout) == (130, "went on\n")
    assert found.stderr.startswith("refusion-edge: interrupted")
    assert one_sentence(found.stderr)


@pytest.mark.parametrize(("limit", "code"), [(767, 4), ("768", 0), ("1e6", 0), (5, 2), ("many", 2)])
def test_the_number_of_pixels_has_a_limit(run_cli: Run, limit: str | int, code: int) -> None:
    for name in "ab":
        write_image(f"{name}.png", np.full((24, 32), 90 if name == "a" else 200, np.uint8) + np.eye(24, 32, dtype=np.uint8))
    found, _, _ = run_cli("fuse", "a.png", "b.png", "-o", "f.png", "--network", "fast", "--max-pixels", limit)
    assert found == code
    assert Path("f.png").exists() == (code == 0)
