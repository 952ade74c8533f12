"""Whole runs of a few steps: exact resume, clean stops, guards, and everything that may go wrong on the way."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from safetensors.torch import load_file
from torch.optim import Optimizer

from refusion_edge.arrays import State
from refusion_edge.errors import CheckpointError, DiskFullError, OutputError, TrainingError, UsageError
from refusion_edge.files import Claim
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_pth
from refusion_edge.tasks import find_task
from refusion_edge.train import loop, probe
from refusion_edge.train.collection import PairCollection, survey
from refusion_edge.train.diagnostics import collapse, diagnose, distances, hold
from refusion_edge.train.layers import Parameters
from refusion_edge.train.log import RunLog
from refusion_edge.train.loop import BEST_NAME, FAILED_NAME, Outcome, Run, build_networks, train
from refusion_edge.train.process import Ranks
from refusion_edge.train.session import Console, Request, run_session
from refusion_edge.train.settings import Settings, resolve
from refusion_edge.train.state import find_checkpoints, initial_state, read_fusion, read_state
from refusion_edge.train.targets import targets_of
from tests.raising import raises
from tests.train.conftest import SMALL

HEALTHY = {"w_slot": 0.0, "v_slot": 0.0, "w_moved": 0.0, "v_moved": 0.0, "swap": 0.0, "share": 0.5, "position": 0.5}


def quiet(remarks: list[str] | None = None, at: Callable[[int], None] = lambda _: None) -> Console:
    """Collect remarks, and call ``at`` with the number of every step."""
    steps = iter(range(1, 10**6))
    return Console((remarks if remarks is not None else []).append, iter, lambda *_: at(next(steps)))


def request(data: Path, output: str, *assignments: str, **options: object) -> Request:
    return Request("ir_vis", data, Path(output), assignments=(*SMALL, *assignments), **options)  # type: ignore[arg-type]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def kill_at(step: int, number: signal.Signals) -> Callable[[int], None]:
    return lambda taken: os.kill(os.getpid(), number) if taken == step else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "extra"),
    [
        (signal.SIGTERM, ()),
        (signal.SIGINT, ("meta.phase=3", "meta.optimizer=max-normalized", "meta.adapt_reconstruction=true")),
    ],
)
def test_twenty_steps_are_ten_and_ten_after_a_clean_stop(
    folder_of_pairs: Callable[..., Path], number: signal.Signals, extra: tuple[str, ...]
) -> None:
    data = folder_of_pairs("data")
    whole = run_session(request(data, "whole", "run.steps=20", *extra), quiet())
    first = run_session(request(data, "parts", "run.steps=20", *extra), quiet(at=kill_at(10, number)))
    assert first == Outcome(10, False, number.name, Path("parts/step-0000010.safetensors"), True)
    second = run_session(Request("ir_vis", data, Path("unused"), resume=Path("parts")), quiet())
    assert (whole.step, second.step, second.finished) == (20, 20, True)
    one, other = load_file(whole.checkpoint), load_file(second.checkpoint)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert any(name.startswith("optim.proposal.") for name in one) == ("meta.phase=3" not in extra)
    assert not Path("unused").exists()


def test_a_training_checkpoint_serves_as_weights(folder_of_pairs: Callable[..., Path]) -> None:
    """A run that was stopped has no weights file yet; what it has so far can be used all the same."""
    outcome = run_session(request(folder_of_pairs("data"), "run", "run.steps=3"), quiet())
    checkpoint = read_checkpoint(outcome.checkpoint)
    finished = read_checkpoint("run/ir_vis.safetensors")
    assert checkpoint.task == "ir_vis"
    assert all(np.array_equal(array, finished.state[name]) for name, array in checkpoint.state.items())
    task, theta = read_fusion(Path("run"), read_state(Path("run")).settings)
    assert task == "ir_vis"
    assert all(np.array_equal(tensor.numpy(), finished.state[name]) for name, tensor in theta.items())


def test_a_run_leaves_weights_that_fuse_a_log_and_the_last_checkpoints(folder_of_pairs: Callable[..., Path]) -> None:
    # Without tone curves, which move the share of a source in eight steps so far that a guard would speak, too.
    settings = ("run.steps=8", "validation.every=4", "checkpoint.every=2", "checkpoint.keep=2", "tone.share=0")
    outcome = run_session(request(folder_of_pairs("data"), "run", *settings), quiet())
    folder = Path("run")
    assert [path.name for path in find_checkpoints(folder)] == ["step-0000006.safetensors", "step-0000008.safetensors"]
    assert outcome.checkpoint == find_checkpoints(folder)[-1]
    assert run_session(request(Path("data"), "short", "run.steps=2"), quiet()).finished
    assert (Path("short") / BEST_NAME).is_file()  # validated at its end, if not before
    for name in ("ir_vis.safetensors", BEST_NAME):
        assert read_checkpoint(folder / name).task == "ir_vis"
    log = events(folder)
    assert [line["event"] for line in log] == ["start", "validation", "validation", "stop"]
    assert Settings.from_tables(log[0]["settings"]) == read_state(folder).settings
    validation = log[1]
    for name in ("w", "w_slot", "v_spread", "share", "position", "swap", "sharpness", "reconstruction_gradient_back", "Qabf",
                 "Qabf_stretched", "VIF", "score"):  # fmt: skip
        assert math.isfinite(validation[name]), name


@pytest.mark.slow
def test_control_run_does_not_move_the_proposal(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    run_session(request(data, "off", "run.steps=4", "meta.engine=off"), quiet())
    run_session(request(data, "on", "run.steps=4", "meta.warm_up=0", "meta.every=1", "meta.accumulate=1"), quiet())
    off, on = (load_file(find_checkpoints(Path(name))[-1]) for name in ("off", "on"))
    moved = [name for name in off if name.startswith("proposal.") and not torch.equal(off[name], on[name])]
    assert moved


def test_time_limit_ends_the_run_at_the_end_of_its_schedule(folder_of_pairs: Callable[..., Path]) -> None:
    outcome = run_session(request(folder_of_pairs("data"), "run", "run.steps=100000", max_minutes=0.02), quiet())
    assert outcome.finished
    assert 0 < outcome.step < 1000


def test_fine_tuning_moves_reconstruction_first(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    run_session(request(data, "base", "run.steps=2", "meta.engine=off"), quiet())
    for given in (Path("base/ir_vis.safetensors"), Path("base")):
        remarks: list[str] = []
        asked = Request("medical", data, Path(f"tuned-{given.name}"), assignments=(*SMALL, "run.steps=10"), init=given,
                        folder_a="ir", folder_b="vis")  # fmt: skip
        stopped = run_session(asked, quiet(remarks, at=kill_at(1, signal.SIGTERM)))
        assert "trained for ir_vis" in "\n".join(remarks)
        theta = read_fusion(given, resolve("default", "ir_vis", device="cpu"))[1]
        stored = load_file(stopped.checkpoint)
        assert all(torch.equal(stored[f"fusion.{name}"], tensor) for name, tensor in theta.items())
        assert any(tensor.any() for name, tensor in stored.items() if name.startswith("optim.reconstruction."))
        assert read_state(stopped.checkpoint).settings.optimizer.fusion_frozen == 0.1


def test_fine_tuning_starts_from_an_official_file(folder_of_pairs: Callable[..., Path], random_state: State) -> None:
    write_pth("official.pth", Checkpoint(None, random_state))
    asked = request(folder_of_pairs("data"), "tuned", "run.steps=10", init=Path("official.pth"))
    stored = load_file(run_session(asked, quiet(at=kill_at(1, signal.SIGTERM))).checkpoint)
    assert all(np.array_equal(stored[f"fusion.{name}"].numpy(), array) for name, array in random_state.items())


def test_fine_tuning_resumes_with_the_words_it_began_with(folder_of_pairs: Callable[..., Path], random_state: State) -> None:
    write_pth("official.pth", Checkpoint(None, random_state))
    data = folder_of_pairs("data")
    begun = run_session(request(data, "tuned", "run.steps=4", init=Path("official.pth")), quiet(at=kill_at(2, signal.SIGTERM)))
    ended = run_session(replace(request(data, "tuned", "run.steps=4"), resume=begun.checkpoint), quiet())
    assert ended.finished


def test_the_reference_engine_is_for_one_rank(folder_of_pairs: Callable[..., Path]) -> None:
    settings = resolve("default", "ir_vis", device="cpu", assignments=[*SMALL, "meta.engine=double"])
    collection = PairCollection(survey(folder_of_pairs("data"), find_task("ir_vis"), 16).entries)
    held = hold(collection, settings, torch.device("cpu"))
    run = Run("ir_vis", settings, collection, held, Path("run"), Ranks(0, 2))
    state = initial_state(settings, torch.device("cpu"))
    with raises(UsageError, "meta.engine", remedy="meta.engine=exact", expected=1, got=2):
        train(run, build_networks(settings), state, RunLog(Path("run")), lambda *_: None)


def test_nan_stops_the_run_and_keeps_the_batch(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    with raises(TrainingError, "loss", "step 1"):
        run_session(request(data, "run", "run.steps=50", "optimizer.learning_rate=1e30", "checkpoint.every=1"), quiet())
    batch = load_file(Path("run") / FAILED_NAME)
    assert batch["first"].shape == batch["w"].shape == (2, 1, 16, 16)
    # Whatever was saved before can be gone on from.
    for path in find_checkpoints(Path("run")):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.parametrize("broken", ["fusion", "reconstruction"])
def test_parameters_that_an_update_breaks_are_never_saved(
    folder_of_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    plain = loop.apply

    def break_at_fifth(optimizer: Optimizer, parameters: Parameters, gradient: Parameters, rate: float) -> None:
        plain(optimizer, parameters, gradient, rate)
        calls.append(next(iter(parameters)))
        mine = [name for name in calls if name.startswith("project_in" if broken == "fusion" else "a.")]
        if len(mine) == 5 and calls[-1] == mine[-1]:
            next(iter(parameters.values())).fill_(math.nan)

    calls: list[str] = []
    monkeypatch.setattr(loop, "apply", break_at_fifth)
    asked = request(folder_of_pairs("data"), "run", "run.steps=50", "meta.engine=off", "checkpoint.every=1")
    with raises(TrainingError, f"of {broken[0].upper()} ", "step 4"):
        run_session(asked, quiet())
    assert (Path("run") / FAILED_NAME).is_file()
    assert read_state(Path("run")).counters.step == 4
    assert run_session(Request("ir_vis", Path("data"), Path("run"), resume=Path("run")), quiet(at=kill_at(1, signal.SIGTERM)))


def test_a_broken_meta_cycle_keeps_both_of_its_batches(
    folder_of_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop.meta_gradient
    monkeypatch.setattr(loop, "meta_gradient", lambda *words: replace(plain(*words), loss=torch.tensor(math.inf)))
    with raises(TrainingError, "outer_loss", "step 0"):
        settings = "run.steps=50", "meta.warm_up=0", "targets.clipped=1"
        run_session(request(folder_of_pairs("data"), "run", *settings), quiet())
    batch = load_file(Path("run") / FAILED_NAME)
    assert batch["target_a"].shape == batch["test_target_weight"].shape == (1, 1, 16, 16)
    assert batch["test_first"].shape == batch["first"].shape
    assert not torch.equal(batch["test_first"], batch["first"])


@pytest.mark.slow
def test_a_collapse_freezes_the_proposal_where_it_was_healthy(
    folder_of_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.0, 0.0, 0.9, 0.9])
    monkeypatch.setattr(loop, "diagnose", lambda *_: {**HEALTHY, "w_slot": next(found)})
    settings = (
        "run.steps=16", "validation.every=4", "checkpoint.every=8", "meta.warm_up=0", "meta.every=1", "meta.accumulate=1"
    )  # fmt: skip
    run_session(request(folder_of_pairs("data"), "run", *settings), quiet())
    folder = Path("run")
    assert [line["frozen"] for line in events(folder) if line["event"] == "guard"] == ["w_slot = 0.900"]
    healthy, last = (load_file(path) for path in find_checkpoints(folder))
    assert all(torch.equal(healthy[name], last[name]) for name in healthy if name.startswith("proposal."))
    assert not torch.equal(healthy["fusion.project_out_1.weight"], last["fusion.project_out_1.weight"])
    assert read_state(folder).counters.frozen == "w_slot = 0.900"


@pytest.mark.parametrize(("moved", "frozen"), [(0.012, ""), (0.2, "share = 0.112")])
def test_a_share_that_the_prior_asks_for_does_not_freeze_the_proposal(moved: float, frozen: str) -> None:
    """The shares of a medical run whose P had hardly moved, and of one whose P had."""
    limits = resolve("default", "medical", device="cpu").guard
    shares = (0.187, 0.142, 0.132, 0.112, 0.098, 0.091, 0.087, 0.089)
    reference = distances({**HEALTHY, "share": shares[1]}, limits)  # when P began to learn
    verdicts = [collapse({**HEALTHY, "w_moved": moved, "share": share}, limits, reference) for share in shares]
    assert next(filter(None, verdicts), "") == frozen


def test_what_a_proposal_moved_is_weighted_by_what_the_choice_matters(
    folder_of_pairs: Callable[..., Path],
) -> None:
    settings = resolve("default", "ir_vis", device="cpu", assignments=SMALL)
    collection = PairCollection(survey(folder_of_pairs("data"), find_task("ir_vis"), 16).entries)
    held = hold(collection, settings, torch.device("cpu"))
    networks = build_networks(settings)
    state = initial_state(settings, torch.device("cpu"))
    untouched = diagnose(networks, state.theta, state.phi, state.rho, held)
    assert untouched["w_moved"] == untouched["v_moved"] == 0
    for name in ("intensity", "gradient"):
        state.phi[f"{name}.project_out_1.weight"].normal_(generator=torch.Generator().manual_seed(0))
    moved = diagnose(networks, state.theta, state.phi, state.rho, held)
    assert 0 < moved["w_moved"] < 1
    assert 0 < moved["v_moved"] < 1
    weights = networks.propose(state.phi, held.batch.a[:2], held.batch.b[:2]).intensity[:2]
    importance = (held.batch.a[:2] - held.batch.b[:2]) ** 2
    expected = ((weights - held.prior.intensity).abs() * importance).sum() / importance.sum()
    assert moved["w_moved"] == pytest.approx(expected.item())


def test_validation_and_probe_compare_with_what_the_loss_compares_with(folder_of_pairs: Callable[..., Path]) -> None:
    settings = resolve("default", "ir_vis", device="cpu", assignments=[*SMALL, "targets.gaps=1"])
    collection = PairCollection(survey(folder_of_pairs("data"), find_task("ir_vis"), 16).entries)
    held = hold(collection, settings, torch.device("cpu"))
    timed = probe._draw(collection, 0, 2, 16, torch.device("cpu"), settings)
    for batch in (held.batch, timed):
        expected = targets_of(batch.a[:2], batch.b[:2], settings.targets)
        assert torch.equal(batch.compared[0], expected.a)
        assert not torch.equal(batch.compared[0], batch.a[:2])
    networks, state = build_networks(settings), initial_state(settings, torch.device("cpu"))
    assert diagnose(networks, state.theta, state.phi, state.rho, held)["w_moved"] == 0


def test_a_full_disk_leaves_the_last_good_checkpoint(
    folder_of_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from refusion_edge import files

    link, rename = os.link, Path.replace

    # A file gets its name by one of the two.
    def require_space(name: object) -> None:
        if "step-0000004" in str(name):
            raise OSError(errno.ENOSPC, "No space left on device")

    def link_or_fail(source: str, target: Path, **options: Any) -> None:
        require_space(target)
        link(source, target, **options)

    def replace_or_fail(self: Path, target: Path) -> Path:
        require_space(target)
        return rename(self, target)

    monkeypatch.setattr(files.os, "link", link_or_fail)
    monkeypatch.setattr(files.Path, "replace", replace_or_fail)
    with raises(DiskFullError, "run/step-0000004.safetensors"):
        run_session(request(folder_of_pairs("data"), "run", "run.steps=6", "checkpoint.every=2"), quiet())
    assert [path.name for path in Path("run").glob("*step*")] == ["step-0000002.safetensors"]
    assert not [path for path in Path("run").iterdir() if path.name.startswith(".")]
    assert read_state(Path("run")).counters.step == 2


def test_a_file_that_breaks_mid_run_is_left_out(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data", count=6)

    def break_one(step: int) -> None:
        if step == 2:
            (data / "ir/03.png").write_bytes(b"")

    remarks: list[str] = []
    asked = request(data, "run", "run.steps=12", "run.batch=3", "data.cache_mib=0", "meta.engine=off")
    assert run_session(asked, quiet(remarks, at=break_one)).finished
    assert len([remark for remark in remarks if "03.png" in remark]) == 1
    assert [line["text"] for line in events(Path("run")) if line["event"] == "remark"] == remarks[-1:]


def test_two_pairs_and_one_pair_are_enough(folder_of_pairs: Callable[..., Path]) -> None:
    for count in (1, 2):
        data = folder_of_pairs(f"data{count}", count=count)
        remarks: list[str] = []
        assert run_session(request(data, f"run{count}", "run.steps=2"), quiet(remarks)).finished
        assert "1 pairs to train on, 1 held back" in remarks[-1]


def test_resuming_what_does_not_fit_is_refused(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    run_session(request(data, "run", "run.steps=2", "meta.engine=off"), quiet())
    run = Path("run")
    with raises(CheckpointError, remedy="--task ir_vis", expected="medical", got="ir_vis"):
        run_session(Request("medical", data, run, resume=run), quiet())
    with raises(CheckpointError, "run.steps = 3 (2)"):
        run_session(request(data, "run", "run.steps=3", "meta.engine=off", resume=run), quiet())
    with raises(UsageError, "run", remedy="--resume run"):
        run_session(request(data, "run", "run.steps=2"), quiet())
    with raises(UsageError, "--resume", "--init"):
        run_session(request(data, "x", resume=run, init=run), quiet())
    with raises(CheckpointError, "data"):
        run_session(Request("ir_vis", data, run, resume=data), quiet())
    newest = find_checkpoints(run)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with raises(CheckpointError, newest, expected=None):
        run_session(Request("ir_vis", data, run, resume=run), quiet())
    with raises(CheckpointError, expected="refusion-edge/training/1", got="refusion-edge/checkpoint/1"):
        read_state(run / "ir_vis.safetensors")


def test_a_checkpoint_of_another_version_is_refused(folder_of_pairs: Callable[..., Path]) -> None:
    run_session(request(folder_of_pairs("data"), "run", "run.steps=2", "meta.engine=off"), quiet())
    newest = find_checkpoints(Path("run"))[-1]
    data = newest.read_bytes()
    newest.write_bytes(data.replace(b"late_from", b"late_fron"))
    with raises(CheckpointError, newest, "'late_fron'"):
        read_state(newest)


def test_a_folder_that_cannot_be_made_is_refused(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data")
    Path("taken").write_text("a file")
    with raises(OutputError, "taken"):
        run_session(request(data, "taken", "run.steps=2"), quiet())


def test_changed_pairs_are_remarked_on_when_resuming(folder_of_pairs: Callable[..., Path]) -> None:
    data = folder_of_pairs("data", count=4)
    run_session(request(data, "run", "run.steps=4", "meta.engine=off"), quiet(at=kill_at(1, signal.SIGTERM)))
    (data / "ir/00.png").unlink()
    remarks: list[str] = []
    assert run_session(Request("ir_vis", data, Path("run"), resume=Path("run")), quiet(remarks)).finished
    assert "will not repeat exactly" in "\n".join(remarks)


def test_gpu_features_are_refused_without_a_gpu(folder_of_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for switch in ("machine.bf16=true", "machine.compile=true"):
        with raises(UsageError, "machine.bf16", "machine.compile"):
            run_session(request(folder_of_pairs("data"), "run", switch), quiet())


def test_two_runs_do_not_share_a_folder(folder_of_pairs: Callable[..., Path]) -> None:
    Path("run").mkdir()
    with Claim(Path("run")), raises(OutputError, "run"):
        run_session(request(folder_of_pairs("data"), "run", "run.steps=2"), quiet())
    assert list(Path("run").iterdir()) == []
