"""A training session from a request: data, settings, networks, and a new, resumed or fine-tuned state."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from refusion_edge._version import __version__
from refusion_edge.errors import BackendError, CheckpointError, InputError, UsageError
from refusion_edge.files import Claim, output_error
from refusion_edge.images.names import NameList, read_names
from refusion_edge.network.family import DEFAULT_NETWORK
from refusion_edge.tasks import find_task
from refusion_edge.train.collection import Entry, PairCollection, Survey, split_held, survey
from refusion_edge.train.diagnostics import hold, score_of
from refusion_edge.train.log import RunLog
from refusion_edge.train.loop import Outcome, Run, build_networks, train
from refusion_edge.train.process import Ranks, join_ranks, leave_ranks
from refusion_edge.train.settings import Settings, resolve
from refusion_edge.train.state import TrainingCheckpoint, find_checkpoints, initial_state, read_fusion, read_state, restore
from refusion_edge.train.views import Teacher

# Share of a fine-tuning run in which R adapts to the given F before F is trained.
_FROZEN_WHEN_GIVEN = "optimizer.fusion_frozen=0.1"


@dataclass(frozen=True, slots=True)
class Request:
    """The request of a training session.

    Attributes:
        task: Name of the task.
        data: Folder with the two folders of the task.
        output: Folder of the run.
        preset: Preset or TOML file, or None for ``default``, or for the preset of the resumed run.
        assignments: ``section.key=value`` on top of it.
        folder_a: Folder of source a below ``data``, if not the task's own name.
        folder_b: The same for source b.
        layout: Layout of a known data set; None to find it.
        exclude: Prefixes of names to leave out.
        split: The pairs to train on, and to hold back a share of if there is no ``val``; None for all.
        val: What to hold back for validation: a list of names, or the folder of another set like ``data``; None for a share.
        init: Weights of F to start from.
        resume: Folder of a run, or one of its checkpoints, to continue from.
        auto_resume: Whether to continue the run in ``output`` if it has a checkpoint, instead of refusing to start there.
        max_minutes: Training time in all sessions, or None for no limit.
        device: ``auto``, ``cpu`` or ``cuda``.
        deterministic: Whether only deterministic algorithms may be used.
        network: Name of the network to train, or None for that of the resumed run, or ``refusion``.
        teacher: Weights to learn from besides the loss, or None.
    """

    task: str
    data: Path
    output: Path
    preset: str | None = None
    assignments: tuple[str, ...] = ()
    folder_a: str | None = None
    folder_b: str | None = None
    layout: str | None = None
    exclude: tuple[str, ...] = ()
    split: NameList | None = None
    val: Path | None = None
    init: Path | None = None
    resume: Path | None = None
    auto_resume: bool = False
    max_minutes: float | None = None
    device: str = "auto"
    deterministic: bool = False
    network: str | None = None
    teacher: Teacher | None = None


@dataclass(frozen=True, slots=True)
class Console:
    """Output channels of a session.

    Attributes:
        remark: Called with a sentence.
        files: Wraps the files to show progress.
        progress: Called with the progress in [0, 1] and a short description of the state.
    """

    remark: Callable[[str], None]
    files: Callable[[Iterable[Entry]], Iterable[Entry]]
    progress: Callable[[float, str], None]


def run_session(request: Request, console: Console) -> Outcome:
    """Run a training session.

    Raises:
        UsageError: Options contradict each other, or a setting does not fit.
        InputError: There are no usable pairs.
        CheckpointError: The run to resume has another task, network, teacher or configuration, or is damaged; or the teacher is
            of another task.
        BackendError: The device is not available, or another rank was lost.
        TrainingError: The loss became NaN or infinite.
        OutputError: A file cannot be written, or another run is writing into the folder.
    """
    _check(request)
    if request.auto_resume and find_checkpoints(request.output):
        request = replace(request, resume=request.output, init=None)
    checkpoint = None if request.resume is None else read_state(request.resume)
    device = choose_device(request.device)
    settings = session_settings(request, checkpoint, device)
    _check_settings(request, settings)
    networks = build_networks(settings)
    with _joined(device, deterministic=request.deterministic) as ranks:
        remark = console.remark if ranks.is_first else lambda _: None
        found = survey_for(request, settings, console)
        for sentence in found.remarks:
            remark(sentence)
        kept, held = divide(request, settings, found, replace(console, remark=remark))
        remark(f"{len(kept)} pairs to train on, {len(held)} held back for validation")
        data = settings.data
        collection = PairCollection(kept, data.cache_mib << 20, data.sharp_scale, console.remark, data.repeat)
        held_collection = PairCollection(held, data.cache_mib << 20, data.sharp_scale, remark)
        theta = None
        if request.init is not None:
            known, theta = read_fusion(request.init, settings)
            if known not in (None, request.task):
                remark(f"{request.init} was trained for {known}; its weights are where {request.task} starts")
        state = initial_state(settings, ranks.device, theta)
        _require_names(settings.optimizer.frozen, state.theta)
        output = request.output
        if checkpoint is not None:
            restore(state, checkpoint)
            output = checkpoint.path.parent
            if checkpoint.pairs != tuple(entry.name for entry in kept):
                remark(f"{len(checkpoint.pairs)} pairs were there when the run began; it goes on, but will not repeat exactly")
            remark(f"resuming {checkpoint.path} at step {state.counters.step}")
        _require_one_start(ranks, state.counters.step)
        _make_folder(output)
        max_s = math.inf if request.max_minutes is None else request.max_minutes * 60
        teacher = request.teacher
        data_held = hold(held_collection, settings, ranks.device, teacher)
        run = Run(request.task, settings, collection, data_held, output, ranks, max_s, teacher)
        if not ranks.is_first:
            return train(run, networks, state, _Silent(output), lambda *_: None)
        with Claim(output), RunLog(output) as log:
            log.write("start", state.counters.step, _facts(request, settings, ranks, found))

            def report(sentence: str) -> None:
                remark(sentence)
                log.write("remark", state.counters.step, {"text": sentence})

            collection.report = report
            return train(run, networks, state, log, console.progress)


@contextmanager
def _joined(device: torch.device, *, deterministic: bool) -> Iterator[Ranks]:
    """Join the other ranks, and keep to deterministic algorithms where asked for, until the context is left."""
    ranks = join_ranks(device)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its sums only with a fixed workspace
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic or before)
    try:
        yield ranks
    finally:
        torch.use_deterministic_algorithms(before)
        leave_ranks(ranks)


def choose_device(name: str) -> torch.device:
    """Choose where to train.

    Raises:
        BackendError: ``cuda`` is requested but not available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch can use no CUDA device", "train with --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 is accurate enough for what bf16 autocast leaves in fp32
    return torch.device(name)


def session_settings(request: Request, checkpoint: TrainingCheckpoint | None, device: torch.device) -> Settings:
    """The requested settings, or those of the resumed run.

    Raises:
        UsageError: A setting does not fit.
        CheckpointError: The run to resume has another task, or settings other than those requested.
    """
    network = request.network or DEFAULT_NETWORK
    # F waits for R to adapt to it; without R, there is nothing to wait for.
    given = (_FROZEN_WHEN_GIVEN,) if request.init is not None and network == DEFAULT_NETWORK else ()
    taught = () if request.teacher is None else (f"teacher.sha256={request.teacher.sha256}",)
    assignments = (*given, *request.assignments, *taught)
    if checkpoint is None:
        return resolve(request.preset or "default", request.task, device=device.type, assignments=assignments, network=network)
    if checkpoint.task != request.task:
        raise CheckpointError(
            f"{checkpoint.path} is of a run for {checkpoint.task}, not {request.task}",
            f"add --task {checkpoint.task}",
            expected=request.task,
            got=checkpoint.task,
        )
    settings = checkpoint.settings
    if request.network not in (None, settings.run.network):
        raise CheckpointError(
            f"{checkpoint.path} is of a run for the network {settings.run.network}, not {request.network}",
            "leave --network out",
            expected=request.network,
            got=settings.run.network,
        )
    if (has := request.teacher.sha256 if request.teacher else "") != settings.teacher.sha256:
        wanted = "the teacher with" if settings.teacher.sha256 else "no teacher, so none with"
        digest = settings.teacher.sha256 or has
        raise CheckpointError(
            f"the run in {checkpoint.path} has {wanted} the sha256 {digest[:16]}",
            "give --teacher as when it began",
            expected=settings.teacher.sha256,
            got=has,
        )
    if request.preset is None and not request.assignments:
        return settings
    network = settings.run.network
    asked = resolve(
        request.preset or "default",
        request.task,
        device=device.type,
        # Set by --init at the start of a run, not by its user.
        assignments=(f"optimizer.fusion_frozen={settings.optimizer.fusion_frozen}", *request.assignments, *taught),
        network=network,
    )
    differences = asked.differences(checkpoint.settings)
    if differences:
        raise CheckpointError(
            f"the settings differ from those of the run in {checkpoint.path}: {'; '.join(differences)}",
            "leave out --preset and --set, or start a new run with --init",
        )
    return checkpoint.settings


def divide(
    request: Request, settings: Settings, found: Survey, console: Console
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Divide the pairs into those to train on, and those held back for validation.

    Raises:
        InputError: The pairs to hold back cannot be used, are trained on as well, or are all there are.
    """
    if request.val is None:
        return split_held(found.entries, settings.validation.held)
    if is_folder := request.val.is_dir():
        held = survey_for(replace(request, data=request.val, split=None), settings, console)
    else:
        held = survey_for(replace(request, split=read_names(request.val)), settings, console)
    for sentence in held.remarks:
        if sentence not in found.remarks:
            console.remark(f"validation: {sentence}")
    files = {os.path.realpath(entry.a) for entry in held.entries}
    kept = tuple(entry for entry in found.entries if os.path.realpath(entry.a) not in files)
    both = len(found.entries) - len(kept)
    if both and (is_folder or request.split is not None):
        raise InputError(
            f"{both} of {len(found.entries)} pairs to train on are also in --val {request.val}",
            "hold back pairs that are not trained on",
        )
    if not kept:
        raise InputError(f"{request.val} lists every pair, so that none is left to train on", "shorten the list")
    return kept, held.entries


def survey_for(request: Request, settings: Settings, console: Console) -> Survey:
    """Find and check the pairs of a session.

    Raises:
        InputError: There are no usable pairs.
    """
    return survey(
        request.data,
        find_task(request.task),
        max(settings.run.crop_px, settings.run.late_crop_px),
        folder_a=request.folder_a,
        folder_b=request.folder_b,
        layout=request.layout,
        exclude=request.exclude,
        split=request.split,
        sharp_scale=settings.data.sharp_scale,
        progress=console.files,
    )


def _require_one_start(ranks: Ranks, step: int) -> None:
    """Require that all ranks start from the same step: their gradients are averaged, their states are not."""
    last, first = ranks.largest([step, -step])
    if last != -first:
        raise CheckpointError(
            f"the ranks start from different steps, from {-first:.0f} to {last:.0f}",
            "give all of them the same folder, on a file system that they share",
            expected=last, got=step,
        )  # fmt: skip


def _require_names(beginnings: Iterable[str], parameters: Iterable[str]) -> None:
    names = tuple(parameters)
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise UsageError(
                f"optimizer.frozen has '{beginning}', and no parameter has a name that begins like this",
                f"correct it; the first name is {names[0]}",
                expected=names,
                got=beginning,
            )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


class _Silent(RunLog):
    """The log of ranks that do not write one."""

    def __init__(self, folder: Path) -> None:
        self._path, self._board = folder, None

    def write(self, event: str, step: int, values: object) -> None:
        """Write nothing."""


def _check(request: Request) -> None:
    if request.teacher is not None and request.teacher.task not in (None, request.task):
        raise CheckpointError(
            f"the teacher {request.teacher.name} was trained for {request.teacher.task}, and the task is {request.task}",
            f"give a teacher for {request.task}",
            expected=request.task,
            got=request.teacher.task,
        )
    if request.resume is not None and request.init is not None:
        raise UsageError("--resume continues a run and --init starts a new one from weights", "leave one out")
    if request.max_minutes is not None and not request.max_minutes > 0:
        raise UsageError(
            f"--max-minutes has to be above 0, not {request.max_minutes:g}", "choose a longer time", got=request.max_minutes
        )
    if request.auto_resume and request.resume is not None:
        raise UsageError("--auto-resume continues the run in --output, and --resume that in another folder", "leave one out")
    if request.resume is None and not request.auto_resume and find_checkpoints(request.output):
        raise UsageError(
            f"{request.output} holds the checkpoints of a run",
            f"continue it with --resume {request.output} or choose another --output",
        )


def _check_settings(request: Request, settings: Settings) -> None:
    score_of({}, settings.validation.score)  # report an unknown metric now, not at the first validation
    if settings.targets.depart and request.task != "ir_vis":
        raise UsageError(
            f"[targets] assumes an infrared and a visible image, and the task is {request.task}",
            "leave it out",
            got=request.task,
        )
    if settings.outer.targets and request.task != "ir_vis":
        raise UsageError(
            f"outer.targets assumes an infrared image, and the task is {request.task}", "leave it out", got=request.task
        )
    for name in ("hot", "detail"):
        if getattr(settings.targets, name) and request.teacher is None:
            raise UsageError(
                f"targets.{name} changes the result of a teacher, and there is none", "add --teacher, or leave it out"
            )


def _facts(request: Request, settings: Settings, ranks: Ranks, found: Survey) -> dict[str, object]:
    return {
        "task": request.task,
        "settings": settings.to_tables(),
        "pairs": len(found.entries),
        "remarks": list(found.remarks),
        "teacher": None if request.teacher is None else request.teacher.name,
        "ranks": ranks.size,
        "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "versions": {"refusion-edge": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }
