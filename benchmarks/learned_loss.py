"""The experiment of docs/learned_loss.md: does a loss learned through reconstruction beat the fixed one it starts from?

python -m benchmarks.learned_loss --data DIR --work RUNS --json FILE [--stages states agreement maps compare test]
                                  [--only NAME ...] [--seeds N ...] [--threads 1]
python -m benchmarks.learned_loss --table FILE

DIR holds ``ir_vis/train``, ``ir_vis/test`` and ``multi_exposure/train``. Stages, in this order, with the network ``fast`` and
for ``ir_vis`` unless an arm says otherwise:

- ``states``: F and R are trained for each prior, as they are when P begins to learn.
- ``agreement``: agreement of meta-gradients (``benchmarks.meta_agreement``) for each variant of P, prior and outer objective.
- ``maps``: whether R's error is larger where the fused image has lost detail (``benchmarks.reconstruction_maps``).
- ``compare``: for each arm, runs with several seeds, with the prior alone, a learned loss, or the loss that another arm has
  learned: the same crops, initial F and schedule. Metrics of the final weights on the held-back pairs of the training set.
- ``test``: the same weights on the test sets. For one look at the end.

Every number is written to FILE as soon as it is known, and every run has checkpoints; the same command continues after a stop.
``--only`` leaves out variants and arms whose names begin otherwise, and ``--seeds`` the runs with other seeds.
``--table`` prints the tables of the page from such a file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.meta_agreement import leverages, measure_agreement, subject_of
from benchmarks.reconstruction_maps import errors_of, judge_of, losses_of, plane_of
from benchmarks.weights import Case, fuser_of, measure, test_cases
from refusion_edge.bench.report import describe_machine, describe_versions
from refusion_edge.files import write_atomically
from refusion_edge.images.pairs import PairPaths, read_pair
from refusion_edge.network.checkpoint import AVERAGE_GROUP
from refusion_edge.tasks import find_task
from refusion_edge.train.collection import Entry, PairCollection, read_planes, split_held, survey
from refusion_edge.train.session import Console, Request, run_session
from refusion_edge.train.settings import resolve
from refusion_edge.train.state import checkpoint_path, find_checkpoints, initial_state, read_state, save_state

SCHEMA = "refusion-edge/learned-loss/1"
TASK = "ir_vis"
STAGES = ("states", "agreement", "maps", "compare", "test")
SEEDS = (0, 1, 2)
# The authors' form of the loss, because both intensities have a say in it; no tone curves, because R cannot know them; lamps,
# because hardly any training pair has one.
COMMON = (
    "run.crop_px=64", "run.late_crop_px=64", "run.late_from=1", "loss.coefficient_start=1.0", "tone.share=0.0",
    "validation.images=0", "validation.every=100000", "checkpoint.every=50",
)  # fmt: skip
OF_TASK = {
    "ir_vis": ("tone.glare=0.5", "data.repeat.msrs=30", "data.repeat.tno=4"),
    "multi_exposure": (),
}
EXCLUDED = {"ir_vis": ("llvip",), "multi_exposure": ()}
PRIORS = {
    "hard": (),
    "soft": ("proposal.temperature=4.0",),
}
_STATE = ("run.steps=400", "run.batch=4", "meta.reconstruct=true", "optimizer.warm_up_steps=50")
_HELD, _CROP_PX = 0.1, 64
_ERROR_PAIRS = 8

SIZES = {2: 12, 8: 8, 32: 5, 64: 5, 16: 6}
"""Pairs of a batch, and number of batches, in the stage ``agreement``, the most telling ones first."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What P is, and what it learns from.

    Attributes:
        name: In the tables.
        prior: One of ``PRIORS``.
        changes: ``section.key=value``.
    """

    name: str
    prior: str
    changes: tuple[str, ...] = ()


_HALF = ("proposal.stride=2",)
_ALONE = ("outer.reconstruction=0.0",)
_SIMILARITY = (*_ALONE, "outer.similarity=1.0")
_CENTERED = ("meta.centered=true",)
# Factors that give the terms meta-gradients of similar length, at two pairs.
_VISIBLE = (*_SIMILARITY, "outer.edges=0.5", "outer.detail=2.0", "outer.targets=5.0")
VARIANTS = (
    Variant("hard prior", "hard"),
    Variant("hard prior, centered", "hard", _CENTERED),
    Variant("hard prior, half", "hard", _HALF),
    Variant("soft prior, half", "soft", _HALF),
    Variant("soft prior, half, centered", "soft", (*_HALF, *_CENTERED)),
    # With F and R of the soft prior.
    Variant("no prior, half", "soft", (*_HALF, "proposal.prior=none")),
    Variant("soft prior, half, similarity", "soft", (*_HALF, *_SIMILARITY)),
    Variant("soft prior, half, edges", "soft", (*_HALF, *_ALONE, "outer.edges=1.0")),
    Variant("soft prior, half, detail", "soft", (*_HALF, *_ALONE, "outer.detail=1.0")),
    Variant("soft prior, half, targets", "soft", (*_HALF, *_ALONE, "outer.targets=1.0")),
    Variant("soft prior, half, all but reconstruction", "soft", (*_HALF, *_VISIBLE)),
)


# Eight pairs for each update of P, in four parts.
SCHEDULE = (
    "run.steps=400", "run.batch=2", "optimizer.warm_up_steps=50", "meta.warm_up=0.2", "meta.every=2", "meta.accumulate=4",
    "meta.learning_rate=1e-2",
)  # fmt: skip
# The same number of updates of P, each from 32 pairs at once.
LARGE = (
    "run.steps=80", "run.batch=32", "optimizer.warm_up_steps=10", "optimizer.learning_rate=1e-3", "meta.warm_up=0.0",
    "meta.every=2", "meta.accumulate=1", "meta.learning_rate=1e-2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs of the stage ``compare``.

    Attributes:
        name: In the tables.
        prior: One of ``PRIORS``.
        changes: ``section.key=value`` of a learned loss; empty for a control, which stays at the prior.
        control: Name of the arm to compare with; empty for none.
        schedule: ``section.key=value`` that the control has as well.
        continues: Whether F and R begin as those of the stage ``states``, trained with the seed of the run.
        proposal: Name of the arm whose P, of the same seed, weighs the loss and learns no more; empty for a P of its own.
        task: Name of the task.
        network: Name of the network F.
    """

    name: str
    prior: str
    changes: tuple[str, ...] = ()
    control: str = ""
    schedule: tuple[str, ...] = SCHEDULE
    continues: bool = False
    proposal: str = ""
    task: str = TASK
    network: str = "fast"


_FIXED = ("meta.engine=off", "meta.reconstruct=false")
_LEARNED = ("meta.engine=exact", *_HALF)
_RECONSTRUCTION = (*_LEARNED, "meta.reconstruct=true")
# Without R.
_FREE = ("meta.reconstruct=false",)
# P is asked, but the time when it begins to learn never comes.
_KEPT = (*_LEARNED, "meta.reconstruct=true", "meta.warm_up=1.0")
ARMS = (
    Arm("soft-fixed", "soft"),
    Arm("soft-similarity", "soft", (*_LEARNED, *_FREE, *_SIMILARITY), "soft-fixed"),
    Arm("soft-reconstruction", "soft", _RECONSTRUCTION, "soft-fixed"),
    Arm("large-fixed", "soft", schedule=LARGE, continues=True),
    Arm("large-reconstruction", "soft", _RECONSTRUCTION, "large-fixed", LARGE, continues=True),
    Arm("exposure-fixed", "soft", task="multi_exposure"),
    Arm("exposure-reconstruction", "soft", _RECONSTRUCTION, "exposure-fixed", task="multi_exposure"),
    Arm("paper-fixed", "soft", network="refusion"),
    Arm("paper-transferred", "soft", _KEPT, "paper-fixed", proposal="large-reconstruction", network="refusion"),
)
Named = TypeVar("Named", Variant, Arm)
_LOSSES = ("glare", "targets")
_TEST_SETS = ("roadscene", "tno", "msrs")


def main() -> int:
    """Run stages, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ir_vis/train and ir_vis/test")
    parser.add_argument("--work", type=Path, help="folder for the runs")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES[:-1])
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="variants and arms with such beginnings only")
    parser.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="seeds of the runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables from such a file, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(tables(json.loads(options.table.read_text())), end="")
        return 0
    if not (options.data and options.work and options.json):
        parser.error("expected --data, --work and --json, or --table")
    torch.set_num_threads(options.threads)
    machine, versions = asdict(describe_machine()), {**describe_versions(set()), "torch": torch.__version__}
    document: dict[str, Any] = {"schema": SCHEMA, "machine": machine, "versions": versions}
    if options.json.exists():
        document |= json.loads(options.json.read_text())
    experiment = Experiment(options.data, options.work, options.json, document, tuple(options.only), tuple(options.seeds))
    for stage in STAGES:
        if stage in options.stages:
            getattr(experiment, stage)()
    return 0


@dataclass(slots=True)
class Experiment:
    """The stages; each leaves out what the document already has.

    Attributes:
        data: Folder with the data of the tasks.
        work: Folder of the runs.
        path: File of the document.
        document: All numbers.
        only: How names of variants and arms begin.
        seeds: Seeds of the runs.
    """

    data: Path
    work: Path
    path: Path
    document: dict[str, Any]
    only: tuple[str, ...] = ("",)
    seeds: tuple[int, ...] = SEEDS

    def states(self) -> None:
        """Train F and R for each prior."""
        for name in PRIORS:
            self._trained_state(name)

    def agreement(self) -> None:
        """Measure each variant, the small batches of all of them first."""
        kept, _ = self._pairs(TASK)
        collection = PairCollection(kept, repeat={"msrs": 30, "tno": 4})
        rows = self.document.setdefault("agreement", [])
        for pairs, batches in SIZES.items():
            for variant in self._chosen(VARIANTS):
                row = next((row for row in rows if row["name"] == variant.name), None)
                if row is not None and any(cell["pairs"] == pairs for cell in row["cells"]):
                    continue
                state = self._trained_state(variant.prior)
                subject = subject_of(state, variant.changes, collection, _CROP_PX, torch.device("cpu"))
                if row is None:
                    row = {**asdict(variant), "leverage": leverages(subject), "cells": []}
                    rows.append(row)
                found = measure_agreement(subject, pairs, batches)
                row["cells"].append(asdict(found))
                self._save(f"{variant.name}: {pairs} pairs, {found.cosine:.2f} ± {found.error:.2f}, {found.seconds:.1f} s")

    def maps(self) -> None:
        """Measure R's error where detail is lost, on the first held-back pairs where some is."""
        judge, shown = judge_of(self._trained_state("hard")), []
        for entry in self._pairs(TASK)[1]:
            a, b = map(plane_of, read_planes(entry))
            fused = judge.fuse(a, b)
            found = {loss.name: asdict(errors_of(judge, loss, fused, a, b)) for loss in losses_of(fused, a, b)}
            if found and len(shown) < _ERROR_PAIRS:
                shown.append({"pair": entry.name, **found})
        self.document["maps"] = shown
        self._save(f"maps: {len(shown)} pairs")

    def compare(self) -> None:
        """Train learned runs and controls, and measure them on the held-back pairs."""
        for seed in self.seeds:
            for arm in self._chosen(ARMS):
                if "diagnostics" in self.document.get("compare", {}).get(_run(arm.name, seed), {}):
                    continue
                folder = self._trained(arm, seed)
                self._measure("compare", arm, folder, self._held(arm.task))
                self.document["compare"][folder.name]["diagnostics"] = _diagnostics(folder)
                self._save(f"compare: diagnostics of {folder.name}")
        self._save("compare: all runs")

    def test(self) -> None:
        """Measure the same weights of ``ir_vis`` on the test sets."""
        cases = [case for case in test_cases(find_task(TASK), self.data, 0) if case.group in _TEST_SETS]
        for seed in self.seeds:
            for arm in self._chosen(ARMS):
                if arm.task == TASK:
                    self._measure("test", arm, self._trained(arm, seed), cases)

    def _chosen(self, named: Sequence[Named]) -> list[Named]:
        return [one for one in named if one.name.startswith(self.only)]

    def _measure(self, stage: str, arm: Arm, folder: Path, cases: Sequence[Case]) -> None:
        found = self.document.setdefault(stage, {})
        if folder.name in found:
            return
        task = find_task(arm.task)
        _, fuse = fuser_of(f"{folder.name}={folder / f'{arm.task}.safetensors'}", task)
        sets: dict[str, list[dict[str, float]]] = {}
        for case in cases:
            sets.setdefault(case.group, []).append(measure(fuse, task, case))
        found[folder.name] = {group: _means(rows) for group, rows in sets.items()}
        self._save(f"{stage}: {folder.name}")

    def _trained_state(self, prior: str, seed: int = 0) -> Path:
        folder = self.work / (f"state-{prior}-{seed}" if seed else f"state-{prior}")
        self._train(folder, TASK, "fast", (*_STATE, *PRIORS[prior], f"run.seed={seed}"))
        return folder

    def _trained(self, arm: Arm, seed: int) -> Path:
        given: dict[str, Path] = {}
        if arm.continues:
            given |= dict.fromkeys(("fusion", AVERAGE_GROUP, "reconstruction"), self._trained_state(arm.prior, seed))
        if arm.proposal:
            given["proposal"] = self._trained(next(other for other in ARMS if other.name == arm.proposal), seed)
        folder = self.work / _run(arm.name, seed)
        assignments = (*arm.schedule, *PRIORS[arm.prior], *(arm.changes or _FIXED), f"run.seed={seed}")
        self._train(folder, arm.task, arm.network, assignments, given)
        return folder

    def _train(
        self, folder: Path, task: str, network: str, assignments: tuple[str, ...], given: Mapping[str, Path] | None = None
    ) -> None:
        """Train, from a checkpoint of step 0 where some parameters may be those of other runs."""
        if (folder / f"{task}.safetensors").exists():
            return
        if not find_checkpoints(folder):
            settings = resolve(
                "default", task, device="cpu", assignments=(*COMMON, *OF_TASK[task], *assignments), network=network
            )  # fmt: skip
            state = initial_state(settings, torch.device("cpu"))
            for group, run in (given or {}).items():
                tensors = read_state(run).tensors
                for name, tensor in state.groups()[group].items():
                    tensor.copy_(tensors[f"{group}.{name}"])
            folder.mkdir(parents=True, exist_ok=True)
            names = tuple(entry.name for entry in self._pairs(task)[0])
            save_state(checkpoint_path(folder, 0), state, task=task, settings=settings, pairs=names)
        request = Request(task, self.data / task / "train", folder, exclude=EXCLUDED[task], resume=folder, device="cpu")
        outcome = run_session(request, Console(lambda _: None, iter, lambda *_: None))
        print(f"{folder.name}: {outcome.step} steps", flush=True)
        if not outcome.finished:
            raise SystemExit(f"stopped by {outcome.reason}; the same command continues")

    def _held(self, task: str) -> list[Case]:
        return [Case("held", read_pair(PairPaths(e.name, e.a, e.b))) for e in self._pairs(task)[1] if e.b is not None]

    def _pairs(self, task: str) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        found = survey(self.data / task / "train", find_task(task), _CROP_PX, exclude=EXCLUDED[task])
        return split_held(found.entries, _HELD)

    def _save(self, news: str) -> None:
        write_atomically(self.path, (json.dumps(self.document, indent=1) + "\n").encode())
        print(news, flush=True)


def _run(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"


def _diagnostics(folder: Path) -> dict[str, float]:
    """How far P has moved the weights, what F does in the end, and how far the run's own meta-gradients agreed on average."""
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = next(event for event in reversed(events) if event["event"] == "validation")
    agreements = [event["agreement"] for event in events if event["event"] == "step" and event["agreement"] is not None]
    found = {name: last[name] for name in ("w", "w_moved", "v", "v_moved", "position", "sharpness")}
    return {**found, "agreement": float(np.mean(agreements or [0.0]))}


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the images where it is defined; ``Lost`` is a sum."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows if math.isfinite(row[name])]
        if values:
            found[name] = float(np.sum(values) if name == "Lost" else np.mean(values))
    return found


def tables(document: dict[str, Any]) -> str:
    """The tables of the page, Markdown."""
    return "\n".join(_lines(document))


def _lines(document: dict[str, Any]) -> Iterator[str]:
    if "agreement" in document:
        yield from _agreement_lines(document["agreement"])
    if "maps" in document:
        yield from _map_lines(document["maps"])
    for stage in ("compare", "test"):
        for group in dict.fromkeys(group for sets in document.get(stage, {}).values() for group in sets):
            yield from _compared_lines(group, {run: sets[group] for run, sets in document[stage].items() if group in sets})


def _agreement_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    sizes = sorted({cell["pairs"] for row in rows for cell in row["cells"]})
    yield f"| variant | leverage of w, v | {' | '.join(map(str, sizes))} |"
    yield f"| --- | --- |{' ---: |' * len(sizes)}"
    for row in rows:
        cells = {cell["pairs"]: f"{cell['cosine']:.2f} ± {cell['error']:.2f}" for cell in row["cells"]}
        leverage = f"{row['leverage']['w']:.2f}, {row['leverage']['v']:.2f}"
        yield f"| {row['name']} | {leverage} | {' | '.join(cells.get(size, '') for size in sizes)} |"
    yield ""


def _map_lines(shown: list[dict[str, Any]]) -> Iterator[str]:
    figures = ("ratio", "correlation", "slope", "fall", "left")
    yield "| pair | " + " | ".join(f"{name}: {figure}" for name in _LOSSES for figure in figures) + " |"
    yield f"| --- |{' ---: |' * (len(_LOSSES) * len(figures))}"
    for row in shown:
        values = [row[name][figure] if name in row else None for name in _LOSSES for figure in figures]
        yield f"| {row['pair']} | {' | '.join('' if value is None else f'{value:.2f}' for value in values)} |"
    columns = [[row[name][figure] for row in shown if name in row] for name in _LOSSES for figure in figures]
    yield f"| mean | {' | '.join(_with_error(column) for column in columns)} |"
    yield ""


def _compared_lines(group: str, runs: dict[str, dict[str, float]]) -> Iterator[str]:
    families: dict[str, list[Arm]] = {}
    for arm in ARMS:
        if any(_run(arm.name, seed) in runs for seed in SEEDS):
            families.setdefault(arm.control or arm.name, []).append(arm)
    for arms in families.values():
        yield from _family_lines(group, arms, runs)


def _family_lines(group: str, arms: Sequence[Arm], runs: dict[str, dict[str, float]]) -> Iterator[str]:
    """The table of a control and of what is compared with it."""
    columns: dict[str, dict[str, list[float]]] = {}
    for arm in arms:
        found = [seed for seed in SEEDS if {_run(name, seed) for name in (arm.name, arm.control) if name} <= runs.keys()]
        base = [runs.get(_run(arm.control, seed), {}) for seed in found]
        rows = [runs[_run(arm.name, seed)] for seed in found]
        names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
        columns[arm.name] = {name: [x[name] - y.get(name, 0.0) for x, y in zip(rows, base, strict=True)] for name in names}
    controls = {arm.name: f", less {arm.control}" if arm.control else "" for arm in arms}
    yield f"| {group} | {' | '.join(name + controls[name] for name in columns)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for metric in next(iter(columns.values())):
        cells = [_with_error(found.get(metric, []), "+" if controls[name] else "") for name, found in columns.items()]
        yield f"| {metric} | {' | '.join(cells)} |"
    yield ""


def _with_error(values: Sequence[float], sign: str = "") -> str:
    """Mean and its standard error."""
    if not values:
        return ""
    mean = float(np.mean(values))
    digits = 1 if abs(mean) >= 10 else 3
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:{sign}.{digits}f}{error}"


if __name__ == "__main__":
    sys.exit(main())
