"""Runs of the network ``fast``: with a teacher, stopped and resumed, and mixed up."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from safetensors.torch import load_file

from refusion_edge.arrays import Float32Array
from refusion_edge.errors import CheckpointError, UsageError
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.fast import FastLayout, layout_of
from refusion_edge.train.losses import TeacherSettings, teacher_loss
from refusion_edge.train.meta import Batch
from refusion_edge.train.session import Request, run_session
from refusion_edge.train.settings import resolve
from refusion_edge.train.state import initial_state
from refusion_edge.train.views import Teacher
from tests.raising import raises
from tests.train.conftest import SMALL
from tests.train.test_loop import kill_at, quiet

LAYOUT = ("fast.channels=8", "fast.convolutions=3")


def average(a: Float32Array, b: Float32Array) -> Float32Array:
    return (a + b) / 2


TEACHER = Teacher("average", "ir_vis", "12ab", average)


def fast_request(data: Path, output: str, *assignments: str, teacher: Teacher | None = TEACHER, **other: object) -> Request:
    words = (*SMALL, *LAYOUT, *assignments)
    return Request("ir_vis", data, Path(output), assignments=words, network="fast", teacher=teacher, **other)  # type: ignore[arg-type]


def test_targets_that_would_have_no_effect_are_refused(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    with raises(UsageError, "teacher"):
        run_session(fast_request(data, "run", "targets.hot=1", teacher=None), quiet())
    with raises(UsageError, "teacher"):
        run_session(fast_request(data, "run", "targets.detail=0.1", teacher=None), quiet())
    with raises(UsageError, "medical"):
        run_session(replace(fast_request(data, "run", "targets.clipped=1", teacher=None), task="medical"), quiet())
    assert not Path("run").exists()


@pytest.mark.parametrize("network", ["fast", "refusion"])
def test_shifts_reach_either_network(folder_of_pairs: Callable[..., Path], network: str) -> None:
    data = folder_of_pairs("data")
    for output in ("1", "2"):
        words = ("run.steps=3", "meta.engine=off", "shift.share=1", f"shift.most_px={output}")
        run_session(replace(fast_request(data, output, *words, teacher=None), network=network), quiet())
    one, two = (read_checkpoint(f"{output}/ir_vis.safetensors").state for output in ("1", "2"))
    assert any((one[name] != two[name]).any() for name in one)


def test_a_repeated_command_continues_its_run(folder_of_pairs: Callable[..., Path]) -> None:
    request = replace(fast_request(folder_of_pairs("data"), "run", "run.steps=4"), auto_resume=True)
    first = run_session(request, quiet(at=kill_at(2, signal.SIGTERM)))
    second = run_session(request, quiet())
    assert (first.step, first.finished, second.step, second.finished) == (2, False, 4, True)
    with raises(UsageError, "--resume"):
        run_session(replace(request, resume=Path("run")), quiet())


def test_ten_steps_are_five_and_five_after_a_clean_stop(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    whole = run_session(fast_request(data, "whole", "run.steps=10"), quiet())
    first = run_session(fast_request(data, "parts", "run.steps=10"), quiet(at=kill_at(5, signal.SIGTERM)))
    assert (first.step, first.finished) == (5, False)
    second = run_session(Request("ir_vis", data, Path("unused"), resume=Path("parts"), teacher=TEACHER), quiet())
    assert (second.step, second.finished) == (10, True)
    one, other = load_file(whole.checkpoint), load_file(second.checkpoint)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    weights = read_checkpoint("whole/ir_vis.safetensors")
    assert (weights.network, weights.task) == ("fast", "ir_vis")
    assert weights.notes["teacher"] == "average, sha256 12ab"
    assert read_checkpoint(whole.checkpoint).network == "fast"
    events = [json.loads(line) for line in Path("whole/log.jsonl").read_text().splitlines()]
    validation = next(event for event in events if event["event"] == "validation")
    assert 0 < validation["PSNR-teacher"] < 60
    # R is not trained, so nothing is said about it.
    assert not any(name.startswith("reconstruction") for name in validation)


@pytest.mark.slow
def test_it_learns_what_the_teacher_does(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data", side=32)
    words = ("run.steps=150", "run.batch=2", "validation.every=150", "teacher.loss=0.0", "optimizer.ema=0.9", "tone.share=0.0")
    run_session(fast_request(data, "run", *words), quiet())
    events = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    steps = [event["loss"] for event in events if event["event"] == "step"]
    assert steps[-1] < steps[0] / 3


def test_it_trains_without_a_teacher_and_with_a_learned_loss(folder_of_pairs: Callable[..., Path]) -> None:
    words = ("run.steps=4", "meta.engine=exact", "meta.reconstruct=true", "meta.warm_up=0.0")
    outcome = run_session(fast_request(folder_of_pairs("data"), "run", *words, teacher=None), quiet())
    assert outcome.finished
    before = initial_state(
        resolve("default", "ir_vis", device="cpu", assignments=(*SMALL, *LAYOUT), network="fast"), torch.device("cpu")
    )
    after = load_file(outcome.checkpoint)
    assert any(not torch.equal(after[f"proposal.{name}"], tensor) for name, tensor in before.phi.items())


def test_it_learns_a_loss_without_reconstruction(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    words = ("run.steps=4", "meta.engine=exact", "meta.warm_up=0.0", "proposal.stride=2", "outer.similarity=1.0")
    with raises(UsageError):
        run_session(fast_request(data, "run", *words, teacher=None), quiet())
    words = (*words, "outer.reconstruction=0.0")
    outcome = run_session(fast_request(data, "run", *words, teacher=None), quiet())
    events = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert outcome.finished
    assert any(event.get("w_moved", 0) > 0 for event in events)


def test_targets_as_an_outer_objective_need_an_infrared_image(folder_of_pairs: Callable[..., Path]) -> None:
    words = ("meta.engine=exact", "meta.reconstruct=true", "outer.targets=1.0")
    with raises(UsageError, "medical"):
        run_session(replace(fast_request(folder_of_pairs("data"), "run", *words, teacher=None), task="medical"), quiet())


def test_the_paper_s_network_can_have_a_teacher(folder_of_pairs: Callable[..., Path]) -> None:
    request = Request("ir_vis", folder_of_pairs("data"), Path("run"), assignments=(*SMALL, "run.steps=2"), teacher=TEACHER)
    assert run_session(request, quiet()).finished
    assert read_checkpoint("run/ir_vis.safetensors").network == "refusion"


def test_the_teacher_s_loss_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    fused, taught = (torch.rand(2, 1, 9, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    inner = [plane.numpy()[:, 0] for plane in (fused, taught)]
    padded = np.pad(inner[0] - inner[1], ((0, 0), (1, 1), (1, 1)))
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    slope = 0.0
    for taps in (kernel, kernel.T):
        response = sum(taps[y, x] * padded[:, y : y + 9, x : x + 9] for y in range(3) for x in range(3))
        slope += np.abs(response).mean()
    expected = 2.0 * np.abs(inner[0] - inner[1]).mean() + 0.25 * slope
    settings = TeacherSettings(intensity=2.0, gradient=0.25)
    assert teacher_loss(fused, taught, settings).item() == pytest.approx(expected, rel=1e-12)


def test_frozen_parameters_stay(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    run_session(fast_request(data, "run", "run.steps=3", "optimizer.frozen=['statistics.']"), quiet())
    state = read_checkpoint("run/ir_vis.safetensors").state
    assert not state["statistics.1.weight"].any()
    assert state["layers.0.bias"].any()
    with pytest.raises(UsageError) as caught:
        run_session(fast_request(data, "other", "optimizer.frozen=['stem.']"), quiet())
    assert caught.value.got == "stem."
    assert not Path("other").exists()


def test_both_orders_have_their_own_statistics_and_one_lesson() -> None:
    a, b = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    figures = torch.arange(16.0).reshape(2, 8)
    batch = Batch.in_both_orders(a, b, figures, a + b)
    assert batch.figures is not None
    assert batch.taught is not None
    assert batch.figures[2].tolist() == [2, 3, 0, 1, 4, 5, 6, 7]
    assert torch.equal(batch.taught[:2], batch.taught[2:])
    assert len(batch.inputs) == 3
    assert len(Batch.in_both_orders(a, b).inputs) == 2


def test_a_teacher_of_another_task_is_refused(folder_of_pairs: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        run_session(fast_request(folder_of_pairs("data"), "run", teacher=replace(TEACHER, task="medical")), quiet())
    assert (caught.value.expected, caught.value.got) == ("ir_vis", "medical")
    assert not Path("run").exists()


@pytest.mark.parametrize("teacher", [None, replace(TEACHER, sha256="34cd")])
def test_a_run_goes_on_only_with_its_teacher(folder_of_pairs: Callable[..., Path], teacher: Teacher | None) -> None:
    data = folder_of_pairs("data")
    run_session(fast_request(data, "run", "run.steps=2"), quiet())
    with pytest.raises(CheckpointError) as caught:
        run_session(Request("ir_vis", data, Path("run"), resume=Path("run"), teacher=teacher), quiet())
    assert (caught.value.expected, caught.value.got) == ("12ab", "" if teacher is None else "34cd")


def test_a_run_goes_on_only_with_its_network(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    run_session(fast_request(data, "run", "run.steps=2"), quiet())
    with pytest.raises(CheckpointError) as caught:
        run_session(Request("ir_vis", data, Path("run"), resume=Path("run"), teacher=TEACHER, network="refusion"), quiet())
    assert (caught.value.expected, caught.value.got) == ("refusion", "fast")


def test_weights_to_start_from_have_to_fit(folder_of_pairs: Callable[..., Path], random_state: dict[str, np.ndarray]) -> None:
    data = folder_of_pairs("data")
    write_safetensors("paper.safetensors", Checkpoint("ir_vis", random_state))
    with pytest.raises(CheckpointError) as caught:
        run_session(fast_request(data, "run", init=Path("paper.safetensors")), quiet())
    assert (caught.value.expected, caught.value.got) == ("fast", "refusion")
    wide = {name: np.zeros(shape, np.float32) for name, shape in FastLayout(16, 3).shapes.items()}
    write_safetensors("wide.safetensors", Checkpoint("ir_vis", wide))
    with pytest.raises(CheckpointError) as caught:
        run_session(fast_request(data, "run", init=Path("wide.safetensors")), quiet())
    assert (caught.value.expected, caught.value.got) == (FastLayout(8, 3), FastLayout(16, 3))
    fits = run_session(fast_request(data, "run", "fast.channels=16", "run.steps=2", init=Path("wide.safetensors")), quiet())
    assert fits.finished
    state = read_checkpoint("run/ir_vis.safetensors").state
    assert layout_of({name: array.shape for name, array in state.items()}) == FastLayout(16, 3)


def test_a_loss_cannot_be_learned_without_reconstruction() -> None:
    with pytest.raises(UsageError):
        resolve("default", "ir_vis", device="cpu", assignments=("meta.engine=exact",), network="fast")


def test_the_command_names_the_teacher_when_it_stops(
    folder_of_pairs: Callable[..., Path], run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    words = [word for setting in (*SMALL, *LAYOUT, "run.steps=2") for word in ("--set", setting)]
    data = folder_of_pairs("data")
    code, out, err = run_cli(
        "train", "--task", "ir_vis", "--network", "fast", "--teacher", "ir_vis", "--data", data, "--threads", 1, *words
    )
    assert code == 0, err
    assert "runs/ir_vis-fast/ir_vis.safetensors" in out
    code, _, err = run_cli("train", "--task", "ir_vis", "--teacher", "medical", "--data", data, "-o", "other", *words)
    assert code == CheckpointError.exit_code
    assert "medical" in err
