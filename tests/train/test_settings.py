"""Settings and schedules: presets, overrides, and every way to get one wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.errors import UsageError
from refusion_edge.tasks import TASKS
from refusion_edge.train import settings
from refusion_edge.train.optimization import Action, action_at, average_decay, crop_at, gradient_coefficient, learning_factor
from refusion_edge.train.settings import PRESETS, Settings, resolve
from tests.raising import raises


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_presets_resolve_for_every_task_and_survive_storage(preset: str, task: str, device: str) -> None:
    settings = resolve(preset, task, device=device)
    assert Settings.from_tables(settings.to_tables()) == settings
    assert settings.differences(settings) == []


def test_tasks_devices_and_assignments_override_in_this_order() -> None:
    assert resolve("default", "ir_vis", device="cpu").proposal.prior == "brighter"
    assert resolve("default", "multi_exposure", device="cuda").run.batch > resolve("default", "ir_vis", device="cpu").run.batch
    assigned = resolve("default", "ir_vis", device="cpu", assignments=["proposal.prior=none", "guard.share=[0, 1]"])
    assert assigned.proposal.prior == "none"
    assert assigned.guard.share == (0.0, 1.0)
    assert assigned.differences(resolve("default", "ir_vis", device="cpu")) == [
        "guard.share = (0.0, 1.0) ((0.15, 0.85))",
        "proposal.prior = none (brighter)",
    ]


def test_a_preset_of_ones_own_is_a_file() -> None:
    own = Path("own.toml")
    text = (Path(resolve.__globals__["__file__"]).parent / "presets" / "default.toml").read_text()
    own.write_text(text.replace("steps = 4500", "steps = 7"))
    assert resolve("own.toml", "ir_vis", device="cpu").run.steps == 7
    own.write_text("[run\n")
    with raises(UsageError, "own.toml"):
        resolve("own.toml", "ir_vis", device="cpu")


def test_earlier_spellings_are_read() -> None:
    old = {"optimizer": "optimiser", "centered": "centred", "max-normalized": "max-normalised"}
    text = (Path(resolve.__globals__["__file__"]).parent / "presets" / "paper.toml").read_text()
    for new, former in old.items():
        assert new in text
        text = text.replace(new, former)
    Path("old.toml").write_text(text)
    words = ["optimiser.clip=2.0", "meta.centred=true", "meta.optimiser=adamw"]
    found = resolve("old.toml", "ir_vis", device="cpu", assignments=words)
    assert (found.optimizer.clip, found.meta.centered, found.meta.optimizer) == (2.0, True, "adamw")
    assert resolve("old.toml", "ir_vis", device="cpu") == resolve("paper", "ir_vis", device="cpu")
    tables = found.to_tables()
    tables["optimiser"] = tables.pop("optimizer")
    tables["meta"]["centred"] = tables["meta"].pop("centered")
    assert Settings.from_tables(tables) == found


def test_a_name_in_both_spellings_is_refused() -> None:
    text = (Path(resolve.__globals__["__file__"]).parent / "presets" / "paper.toml").read_text()
    Path("both.toml").write_text(text.replace("centered = false", "centered = true\ncentred = false"))
    with raises(UsageError, "'centred'", remedy="'centered'"):
        resolve("both.toml", "ir_vis", device="cpu")


@pytest.mark.parametrize(
    ("assignment", "named", "expected"),
    [
        ("run.step=3", "'step'", None),
        ("runs.steps=3", "'runs'", None),
        ("run.steps", "'run.steps'", None),
        ("run.steps=many", "run.steps", "a whole number"),
        ("run.steps=true", "run.steps", "a whole number"),
        ("run.steps=0", "run.steps", "above 0"),
        ("run.crop_px=8", "run.crop_px", "at least 16"),
        ("run.seed=-1", "run.seed", "at least 0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate", "a number"),
        ("optimizer.learning_rate=-1e-3", "optimizer.learning_rate", "above 0"),
        ("meta.learning_rate=inf", "meta.learning_rate", "a number"),
        ("meta.warm_up=2", "meta.warm_up", "from 0 to 1"),
        ("validation.held=-0.1", "validation.held", "from 0 to 1"),
        ("data.repeat.msrs=0", "data.repeat.msrs", "at least 1"),
        ("loss.gradient=smooth", "loss.gradient", "one of signed, magnitude, signed-max"),
        ("shift.share=1.5", "shift.share", "from 0 to 1"),
        ("shift.most_px=0", "shift.most_px", "above 0"),
        ("guard.share=[1]", "guard.share", "a list of 2"),
        ("guard.share=['a', 'b']", "guard.share[0]", "a number"),
        ("meta.centered=1", "meta.centered", "true or false"),
        ("run=3", "'run=3'", None),
        ("validation.score=3", "validation.score", "a table"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(assignment: str, named: str, expected: str | None) -> None:
    with raises(UsageError, named, expected=expected):
        resolve("default", "ir_vis", device="cpu", assignments=[assignment])


def test_unknown_presets_and_contradictions_are_refused() -> None:
    with raises(UsageError, got="papr"):
        resolve("papr", "ir_vis", device="cpu")
    with raises(UsageError, "exact-fd", remedy="meta.engine=exact"):
        resolve("default", "ir_vis", device="cpu", assignments=["meta.engine=exact-fd", "machine.bf16=true"])


def test_meta_cycles_are_interleaved_or_in_phases() -> None:
    both, update, meta = Action(True, True), Action(False, True), Action(True, False)
    interleaved = resolve("default", "ir_vis", device="cpu").meta
    assert [action_at(interleaved, step, 0.5, learning=True) for step in range(5)] == [both, update, update, update, both]
    assert action_at(interleaved, 0, 0.1, learning=True) == update  # P is still warming up
    assert action_at(interleaved, 0, 0.5, learning=False) == update  # P is frozen
    phases = resolve("paper", "ir_vis", device="cpu", assignments=["meta.phase=2"]).meta
    assert [action_at(phases, step, 0.0, learning=True) for step in range(5)] == [meta, meta, update, update, meta]
    off = resolve("default", "ir_vis", device="cpu", assignments=["meta.engine=off"]).meta
    assert action_at(off, 0, 0.5, learning=True) == update


def test_schedules() -> None:
    settings = resolve("default", "ir_vis", device="cpu")
    assert learning_factor(settings.optimizer, 0, 0.0) == pytest.approx(1 / 200)
    assert learning_factor(settings.optimizer, 500, 1.0) == pytest.approx(0.02)
    assert gradient_coefficient(settings.loss, 0.0) == pytest.approx(0.2)
    assert gradient_coefficient(settings.loss, 0.3) == gradient_coefficient(settings.loss, 0.9) == pytest.approx(1.0)
    assert (crop_at(settings.run, 0.5), crop_at(settings.run, 0.7)) == (64, 128)
    assert average_decay(settings.optimizer, settings.run, 0) == pytest.approx(0.1)
    assert average_decay(settings.optimizer, settings.run, 10**6) == pytest.approx(0.999)
    paper = resolve("paper", "ir_vis", device="cpu")
    assert [learning_factor(paper.optimizer, 0, p) for p in (0.1, 0.3)] == pytest.approx([1.0, 0.1])
    assert average_decay(paper.optimizer, paper.run, 10**6) == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"tasks = 3", "tasks "), (b"tasks = {ir_vis = 3}", "tasks.ir_vis "), (b"cuda = [1]", "cuda "), (b"run = []", "loss"),
        (b"[run]\nsteps = 1e999", "loss"), (b"a = " + b"[" * 5000, "own.toml"), (b"a = " + b"9" * 5000, "own.toml"),
        (b"\xff", "own.toml"), (b"[run]\nsteps = nan", "loss"),
    ],
)  # fmt: skip
def test_presets_of_a_wrong_kind_are_refused(text: bytes, named: str) -> None:
    Path("own.toml").write_bytes(text)
    with raises(UsageError, named):
        resolve("own.toml", "ir_vis", device="cuda")


@pytest.mark.parametrize("kind", ["pipe", "folder", "sparse"])
def test_presets_are_regular_files_of_their_size(kind: str) -> None:
    if kind == "pipe":
        os.mkfifo("own.toml")
    elif kind == "folder":
        Path("own.toml").mkdir()
    else:
        with Path("own.toml").open("wb") as file:
            file.truncate(1 << 34)
    with raises(UsageError, "own.toml"):
        resolve("own.toml", "ir_vis", device="cpu")


def test_a_preset_with_a_byte_order_mark_is_read() -> None:
    assert settings.__file__ is not None
    default = (Path(settings.__file__).parent / "presets" / "default.toml").read_bytes()
    Path("mine.toml").write_bytes(b"\xef\xbb\xbf" + default)
    assert resolve("mine.toml", "ir_vis", device="cpu") == resolve("default", "ir_vis", device="cpu")
