"""The training loop, the sole owner of optimizers, checkpoints and the log."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import save
from torch import Tensor

from refusion_edge.errors import BackendError, TrainingError, UsageError
from refusion_edge.files import write_atomically
from refusion_edge.network.checkpoint import Checkpoint, write_safetensors
from refusion_edge.network.fast_module import fuse as fuse_fast
from refusion_edge.train.collection import PairCollection
from refusion_edge.train.crops import crop_batch
from refusion_edge.train.diagnostics import Held, agreement, collapse, diagnose, distances, examples, measure, score_of
from refusion_edge.train.layers import Parameters
from refusion_edge.train.log import RunLog
from refusion_edge.train.losses import LossWeights
from refusion_edge.train.meta import (
    Batch,
    FusionObjective,
    MetaRule,
    Networks,
    fusion_gradient,
    meta_gradient,
    reconstruction_gradient,
)
from refusion_edge.train.networks import ProposalSettings, fuse, prior_weights, propose, reconstruct
from refusion_edge.train.optimization import (
    action_at,
    apply,
    average_decay,
    clipped,
    crop_at,
    gradient_coefficient,
    learning_factor,
    without_frozen,
)
from refusion_edge.train.process import Ranks, StopSignal
from refusion_edge.train.settings import Settings
from refusion_edge.train.state import TrainingState, checkpoint_path, find_checkpoints, save_state
from refusion_edge.train.targets import targets_of
from refusion_edge.train.views import Crops, Teacher, Views

BEST_NAME = "best.safetensors"
FAILED_NAME = "failed-batch.safetensors"

# Number of meta-gradients that the agreement covers.
_RECENT = 8
_LOG_EVERY = 10
# Counter streams of the crops.
_TRAIN, _TEST = 0, 1


@dataclass(frozen=True, slots=True)
class Run:
    """Inputs of a training run.

    Attributes:
        task: Name of the task.
        settings: Its settings.
        collection: Pairs to train on.
        held: Data of the validation.
        folder: Folder of checkpoints and the log.
        ranks: Processes that train together.
        max_s: Length of the run in seconds of training, or infinity; if finite, the schedule follows the time.
        teacher: Weights that F learns from besides the loss, or None.
    """

    task: str
    settings: Settings
    collection: PairCollection
    held: Held
    folder: Path
    ranks: Ranks = field(default_factory=Ranks)
    max_s: float = math.inf
    teacher: Teacher | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: Total number of steps taken.
        finished: Whether the schedule was completed.
        reason: What stopped it early, or empty.
        checkpoint: Its last checkpoint.
        is_first: Whether this process wrote it.
    """

    step: int
    finished: bool
    reason: str
    checkpoint: Path
    is_first: bool


def build_networks(settings: Settings) -> Networks:
    """Build the three networks of a run.

    Raises:
        UsageError: bf16 or compilation is requested without a GPU.
    """
    machine = settings.machine
    if (machine.bf16 or machine.compile) and not torch.cuda.is_available():
        raise UsageError("machine.bf16 and machine.compile need a CUDA device, and there is none", "set both to false")
    proposal = settings.proposal
    if settings.meta.engine == "off":
        # The control run: P contributes nothing, so it is not evaluated.
        proposed: Callable[..., LossWeights] = partial(_prior_weights, proposal)
    else:
        proposed = partial(propose, proposal)
    plain: Callable[..., Tensor] = fuse if settings.run.network == "refusion" else fuse_fast
    compiled = torch.compile(plain, dynamic=False) if machine.compile else plain
    return Networks(compiled, proposed, reconstruct, plain, settings.meta.reconstruct)


def train(run: Run, networks: Networks, state: TrainingState, log: RunLog, report: Callable[[float, str], None]) -> Outcome:  # noqa: PLR0912, PLR0915 # one loop, to be read from top to bottom
    """Train until the schedule ends or a signal arrives; a checkpoint is left in either case.

    Args:
        run: Inputs of the run.
        networks: The three networks.
        state: State to start from; modified in place.
        log: Log of the run.
        report: Called with the progress in [0, 1] and a short description of the state.

    Raises:
        UsageError: The engine supports one rank only, and there are more.
        TrainingError: A loss or a parameter became NaN or infinite; the batch is stored next to the checkpoints.
        BackendError: Another rank was lost.
        OutputError: A checkpoint cannot be written; earlier ones stay.
    """
    settings, ranks, device = run.settings, run.ranks, run.ranks.device
    if settings.meta.engine == "double" and ranks.size > 1:
        raise UsageError(
            f"meta.engine = double runs on one rank only, and there are {ranks.size}",
            "set meta.engine=exact",
            expected=1,
            got=ranks.size,
        )
    counters = state.counters
    draw = _crops(run)
    recent: deque[Tensor] = deque(maxlen=_RECENT)
    already_s, started = counters.elapsed_s, time.monotonic()
    progress, saved = 0.0, -1
    # The latest of each, so that every line of the log includes the last meta cycle.
    values: dict[str, float] = {}

    def save_checkpoint() -> Path:
        nonlocal saved
        path = checkpoint_path(run.folder, counters.step)
        if ranks.is_first and saved != counters.step:
            names = tuple(entry.name for entry in run.collection.entries)
            save_state(path, state, task=run.task, settings=settings, pairs=names)
            for old in find_checkpoints(run.folder)[: -settings.checkpoint.keep]:
                old.unlink(missing_ok=True)
        saved = counters.step
        return path

    with StopSignal() as stop:
        try:
            while True:
                counters.elapsed_s = already_s + time.monotonic() - started
                asked, elapsed_s = ranks.largest([float(bool(stop.received)), counters.elapsed_s])
                progress = max(counters.step / settings.run.steps, elapsed_s / run.max_s)
                if asked or progress >= 1:
                    break

                # What this step does, and at which rates.
                step = counters.step
                action = action_at(settings.meta, step, progress, learning=not counters.frozen)
                factor = learning_factor(settings.optimizer, step, progress)
                coefficient = gradient_coefficient(settings.loss, progress)
                objective = FusionObjective(settings.loss.gradient, coefficient, settings.loss.intensity, settings.teacher)
                meta = settings.meta
                rule = MetaRule(
                    meta.engine, meta.inner_rate * factor, meta.adapt_reconstruction, meta.centered, settings.outer
                )  # fmt: skip
                crop_px = crop_at(settings.run, progress)
                batch = _both_orders(draw(step, crop_px=crop_px, stream=_TRAIN), run, state)

                # Gradients. The pass of F serves the inner update and its own update alike.
                test = None
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.machine.bf16, cache_enabled=False):
                    phi = {name: tensor.detach().requires_grad_(action.meta) for name, tensor in state.phi.items()}
                    weights = networks.propose(phi, *batch.compared)
                    fusion = fusion_gradient(networks, state.theta, batch, weights, objective, ranks.average)
                    values.update(loss=fusion.loss.item(), gradient_norm=_norm(fusion.gradient))
                    if action.meta:
                        test = _both_orders(draw(step, crop_px=crop_px, stream=_TEST), run, state)
                        outer = meta_gradient(
                            networks, state.theta, phi, state.rho, batch, test, weights, fusion, objective, rule, ranks.average
                        )  # fmt: skip
                        values.update(outer_loss=outer.loss.item(), outer_gradient_norm=_norm(outer.gradient))
                        values["constant_share"] = outer.constant_share.item()
                    if action.update and networks.reconstructs:
                        judged = reconstruction_gradient(networks, state.rho, fusion.fused, batch, ranks.average)
                        values["reconstruction_intensity"] = judged.loss.intensity.item()
                        values["reconstruction_gradient"] = judged.loss.gradient.item()
                        values["reconstruction_gradient_norm"] = _norm(judged.gradient)
                bad = [name for name, value in values.items() if not math.isfinite(value)]
                if ranks.largest([float(bool(bad))])[0]:
                    _give_up(run, batch, test, weights, bad or ["the losses of another rank"], step)

                # Updates.
                if action.meta:
                    recent.append(torch.cat([tensor.flatten() for tensor in outer.gradient.values()]))
                    _accumulate(state, outer.gradient)
                    if counters.accumulated == meta.accumulate:
                        mean = {name: tensor / meta.accumulate for name, tensor in state.accumulated.items()}
                        apply(state.optimizers["proposal"], state.phi, mean, meta.learning_rate * factor)
                        _forget(state)
                if action.update:
                    rate = settings.optimizer.learning_rate * factor
                    if progress >= settings.optimizer.fusion_frozen:
                        free = without_frozen(fusion.gradient, settings.optimizer.frozen)
                        apply(state.optimizers["fusion"], state.theta, clipped(free, settings.optimizer.clip), rate)
                    if networks.reconstructs:
                        apply(state.optimizers["reconstruction"], state.rho, judged.gradient, rate)
                    _follow(state, average_decay(settings.optimizer, settings.run, step))
                # The same on every rank, so no exchange is needed. A checkpoint never holds a state that cannot be resumed.
                if bad := _not_finite(state):
                    _give_up(run, batch, test, weights, bad, step)
                counters.step += 1

                # Record, validation, checkpoint.
                if ranks.is_first and counters.step % _LOG_EVERY == 0:
                    strengths = {"rate": factor, "coefficient": objective.coefficient}
                    log.write("step", counters.step, {**values, **strengths, "agreement": agreement(recent)})
                report(progress, f"step {counters.step}, loss {values['loss']:.4f}")
                if counters.step % settings.validation.every == 0:
                    _validate(run, networks, state, log, learning=learns(settings, progress))
                if counters.step % settings.checkpoint.every == 0:
                    save_checkpoint()
        except BackendError:
            # Steps are pure until their updates, so memory holds the state after the last complete step.
            if ranks.is_first:
                save_checkpoint()
            raise
        finished = progress >= 1
        if finished and counters.step % settings.validation.every:
            _validate(run, networks, state, log, learning=learns(settings, progress))
        path = save_checkpoint()
        if ranks.is_first:
            if finished:
                export(run, state, run.folder / f"{run.task}.safetensors")
            log.write("stop", counters.step, {"finished": finished, "signal": stop.received, "elapsed_s": counters.elapsed_s})
        return Outcome(counters.step, finished, stop.received or ("" if finished else "another rank"), path, ranks.is_first)


def export(run: Run, state: TrainingState, path: Path) -> None:
    """Write the averaged weights of F as a plain weights file, which every other command accepts.

    Raises:
        OutputError: It cannot be written.
    """
    taught = {} if run.teacher is None else {"teacher": f"{run.teacher.name}, sha256 {run.teacher.sha256}"}
    notes = {
        **taught,
        "training": "fixed weights (control run)" if run.settings.meta.engine == "off" else "learned loss",
        "step": str(state.counters.step),
        "minutes": f"{state.counters.elapsed_s / 60:.1f}",
        "pairs": str(len(run.collection)),
        "frozen": state.counters.frozen or "no",
        "torch": torch.__version__,
    }
    write_safetensors(path, Checkpoint(run.task, state.exported(), notes))


def learns(settings: Settings, progress: float) -> bool:
    """Tell whether P is past its warm-up."""
    return settings.meta.engine != "off" and progress >= settings.meta.warm_up


def _validate(run: Run, networks: Networks, state: TrainingState, log: RunLog, *, learning: bool) -> None:
    """Measure, keep the best weights, and freeze P if it has collapsed; the first rank decides for all."""
    counters, settings = state.counters, run.settings
    verdict = 0.0
    if run.ranks.is_first:
        found = diagnose(networks, state.average, state.phi, state.rho, run.held)
        metrics = measure(
            lambda a, b: networks.fuse_forward_mode(state.average, a, b),
            run.held,
            tuple(settings.validation.score),
            run.ranks.device,
        )
        total = score_of(metrics, settings.validation.score)
        log.write("validation", counters.step, {**found, **metrics, "score": total})
        log.show(counters.step, examples(networks, state.average, state.phi, state.rho, run.held))
        if counters.best is None or total > counters.best:
            counters.best = total
            export(run, state, run.folder / BEST_NAME)
        if learning and not counters.frozen:
            if not counters.reference:
                counters.reference = distances(found, settings.guard)
            counters.frozen = collapse(found, settings.guard, counters.reference)
            verdict = float(bool(counters.frozen))
            if counters.frozen:
                log.write("guard", counters.step, {"frozen": counters.frozen})
    if run.ranks.largest([verdict])[0]:
        counters.frozen = counters.frozen or "by the first rank"
        for name, tensor in state.phi.items():
            tensor.copy_(state.healthy_phi[name])
    else:
        for name, tensor in state.healthy_phi.items():
            tensor.copy_(state.phi[name])


def _not_finite(state: TrainingState) -> list[str]:
    """Which networks have parameters that are NaN or infinite."""
    networks = {"F": state.theta, "P": state.phi, "R": state.rho}
    return [
        f"parameters of {name}"
        for name, parameters in networks.items()
        if not torch.isfinite(torch.stack([tensor.abs().max() for tensor in parameters.values()])).all()
    ]


def _give_up(run: Run, batch: Batch, test: Batch | None, weights: LossWeights, bad: list[str], step: int) -> NoReturn:
    """Store the batches that made the run fail, and raise."""
    path = run.folder / FAILED_NAME
    tensors = {"first": batch.first, "second": batch.second, "w": weights.intensity, "v": weights.gradient}
    if test is not None:
        tensors |= {"test_first": test.first, "test_second": test.second}
    for name, targets in (("target", batch.targets), ("test_target", None if test is None else test.targets)):
        if targets is not None:
            tensors |= {f"{name}_a": targets.a, f"{name}_b": targets.b, f"{name}_weight": targets.weight}
            tensors |= {} if targets.taught is None else {f"{name}_taught": targets.taught}
    if run.ranks.is_first:
        write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    raise TrainingError(
        f"NaN or infinity in {', '.join(bad)} at step {step}",
        f"look at the batch in {path} and resume from the last checkpoint with a smaller learning rate",
    )


def _prior_weights(settings: ProposalSettings, _phi: Parameters, a: Tensor, b: Tensor) -> LossWeights:
    return prior_weights(settings, torch.cat((a, b)), torch.cat((b, a)))


def _crops(run: Run) -> Callable[..., Crops | tuple[Tensor, Tensor]]:
    """What draws the crops of a step: with statistics and the teacher's result where something needs them."""
    settings, start = run.settings, run.ranks.rank * run.settings.run.batch
    batch, seed, tone = settings.run.batch, settings.run.seed, settings.tone
    if settings.run.network == "refusion" and run.teacher is None and not settings.shift.share:
        return partial(crop_batch, run.collection, batch=batch, seed=seed, start=start, tone=tone)
    cache_bytes = settings.data.cache_mib << 20
    views = Views(run.collection, tone, seed, settings.teacher.variants, run.teacher, cache_bytes, settings.shift)
    return partial(views.draw, batch=batch, start=start)


def _both_orders(crops: Crops | tuple[Tensor, Tensor], run: Run, state: TrainingState) -> Batch:
    like = next(iter(state.theta.values()))
    figures = taught = seen_a = None
    if isinstance(crops, tuple):
        a, b = (plane.to(like) for plane in crops)
    else:
        a, b = crops.a.to(like), crops.b.to(like)
        figures = crops.figures.to(like) if run.settings.run.network == "fast" else None
        taught = None if crops.taught is None else crops.taught.to(like)
        seen_a = None if crops.seen_a is None else crops.seen_a.to(like)
    targets = targets_of(a, b, run.settings.targets, taught) if run.settings.targets.depart else None
    return Batch.in_both_orders(a, b, figures, taught, targets, seen_a)


def _norm(gradient: Parameters) -> float:
    return torch.nn.utils.get_total_norm(gradient.values()).item()


def _accumulate(state: TrainingState, gradient: Parameters) -> None:
    for name, tensor in state.accumulated.items():
        tensor.add_(gradient[name])
    state.counters.accumulated += 1


def _forget(state: TrainingState) -> None:
    for tensor in state.accumulated.values():
        tensor.zero_()
    state.counters.accumulated = 0


def _follow(state: TrainingState, decay: float) -> None:
    torch._foreach_lerp_(list(state.average.values()), list(state.theta.values()), 1 - decay)
