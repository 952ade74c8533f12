"""The verb ``train``: a run from the command line, the probe, and one test per error of a user."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.cli import train
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS
from tests.conftest import one_sentence
from tests.train.conftest import SMALL

WORDS = tuple(word for setting in SMALL for word in ("--set", setting))


def samples(task: str) -> Path:
    return sample_paths(task)[0].a.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_on_its_samples_and_the_weights_fuse(task: str, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run_cli("train", "--task", task, "--data", samples(task), *WORDS, "--set", "run.steps=4", "--threads", 1)
    assert code == 0, err
    weights = f"runs/{task}/{task}.safetensors"
    assert f"wrote {weights} after 4 steps" in out
    assert "refusion-edge fuse" in out
    pair = sample_paths(task)[0]
    assert run_cli("fuse", pair.a, pair.b, "-o", "fused.png", "--weights", weights)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("network", ["refusion", "fast"])
def test_training_starts_from_the_weights_of_the_package(network: str, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    # Without steps that change much, what comes out is close to what went in.
    words = (*WORDS, "--network", network, "--set", "run.steps=1", "--set", "optimizer.learning_rate=1e-8", "--threads", 1)
    code, _, err = run_cli("train", "--task", "medical", "--data", samples("medical"), *words, "--init", "medical", "-o", "run")
    assert code == 0, err
    now, shipped = load_file("run/medical.safetensors"), load_file(weights_path("medical", network))
    assert now.keys() == shipped.keys()
    assert all(np.abs(now[name] - shipped[name]).max() < 1e-5 for name in now)


@pytest.mark.parametrize(("every_s", "lines"), [(0.0, 2), (1e9, 0)])
def test_a_log_gets_lines_of_progress_now_and_then(
    every_s: float, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "_LINE_EVERY_S", every_s)
    with train._progress() as (_, progress):
        progress(0.25, "step 3, loss 0.5000")
        progress(0.5, "step 6, loss 0.4000")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert not lines or ("step 3, loss 0.5000" in said[0] and "25%" in said[0] and "50%" in said[1])


@pytest.mark.slow
def test_paper_preset_runs(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    words = [*WORDS, "--set", "run.steps=4", "--set", "meta.phase=1", "--preset", "paper", "--deterministic"]
    code, _, err = run_cli("train", "--task", "ir_vis", "--data", samples("ir_vis"), *words)
    assert code == 0, err


@pytest.mark.parametrize("crops_px", [(16,), pytest.param((16, 24, 32), marks=pytest.mark.slow)])
def test_probe_proposes_a_shape(
    run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, crops_px: tuple[int, ...]
) -> None:
    from refusion_edge.train import probe

    monkeypatch.setattr(probe, "CPU_CROPS_PX", crops_px)
    monkeypatch.setattr(probe, "CPU_BATCHES", (1, 2) if len(crops_px) > 1 else (1,))
    words = ["--set", "run.crop_px=24", "--set", "run.late_crop_px=24", "--probe"]
    code, out, err = run_cli("train", "--task", "ir_vis", "--data", samples("ir_vis"), *words)
    assert code == 0, err
    assert "proposed: --set run.crop_px=" in out
    assert not Path("runs").exists()
    monkeypatch.setattr(probe, "CPU_CROPS_PX", (64,))  # larger than the crops asked for, which are timed instead
    code, out, err = run_cli("train", "--task", "ir_vis", "--data", samples("ir_vis"), *words)
    assert code == 0, err
    assert "proposed: --set run.crop_px=24 " in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--data", "nowhere"), 4, "nowhere"),
        (("--set", "run.step=1"), 2, "'steps'"),
        (("--preset", "papr"), 2, "papr"),
        (("--max-minutes", "0"), 2, "--max-minutes"),
        (("--init", "x.safetensors"), 4, "x.safetensors"),
        (("--resume", "x"), 4, "x"),
        (("--a", "thermal"), 4, "thermal"),
        (("--set", "validation.score.Qabff=1"), 2, "Qabff"),
    ],
)
def test_errors_of_a_user_are_one_sentence(
    words: tuple[str, ...], code: int, message: str, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    found, _, err = run_cli("train", "--task", "ir_vis", "--data", samples("ir_vis"), *words)
    assert found == code
    assert message in err
    assert one_sentence(err.strip().splitlines()[-1])


def test_a_device_that_is_not_there_is_refused(
    run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run_cli("train", "--task", "ir_vis", "--data", samples("ir_vis"), "--device", "cuda")
    assert code == 3
    assert one_sentence(err)


@pytest.mark.slow
def test_tensorboard_is_fed_where_it_is_installed(
    run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from refusion_edge.train import log

    scalars: set[str] = set()
    pictures: dict[str, tuple[int, ...]] = {}

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder.endswith("tensorboard")

        def add_scalar(self, name: str, _value: float, _step: int) -> None:
            scalars.add(name)

        def add_image(self, name: str, picture: torch.Tensor, _step: int, dataformats: str) -> None:
            assert dataformats == "HW"
            pictures[name] = tuple(picture.shape)

        def close(self) -> None:
            scalars.add("closed")

    monkeypatch.setattr(log, "is_installed", lambda name: name == "tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    words = [*WORDS, "--set", "run.steps=10", "--set", "validation.every=10"]
    assert run_cli("train", "--task", "ir_vis", "--data", samples("ir_vis"), *words)[0] == 0
    assert {"step/loss", "validation/w_slot", "validation/Qabf", "closed"} <= scalars
    assert pictures == dict.fromkeys(("a", "b", "fused", "w", "v", "reconstructed_a", "reconstructed_b"), (16, 16))
