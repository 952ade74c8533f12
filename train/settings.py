"""Settings of a training run: preset files with overrides by task, device and command line, all validated once.

A preset is a TOML file with one table per section below. ``[networks.NAME.SECTION]`` overrides it for a network,
``[cuda.SECTION]`` for a GPU and ``[tasks.NAME.SECTION]`` for a task, in this order. The resolved settings are stored in
every checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from refusion_edge.documents import brief, typed
from refusion_edge.errors import UsageError
from refusion_edge.files import read_file
from refusion_edge.network.family import DEFAULT_NETWORK, find_network
from refusion_edge.network.fast import FastLayout
from refusion_edge.train.augmentation import ShiftSettings, ToneSettings
from refusion_edge.train.losses import GradientTerm, IntensityTerm, TeacherSettings
from refusion_edge.train.meta import Engine
from refusion_edge.train.networks import ProposalSettings
from refusion_edge.train.outer import OuterSettings
from refusion_edge.train.targets import TargetSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = ("default", "paper")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Length and batches of a run.

    Attributes:
        steps: Number of steps; a step updates F and R, P, or both.
        batch: Pairs per step and rank; each is fused in both orders.
        crop_px: Side of a crop.
        late_crop_px: Side of a crop in the last part of the run.
        late_from: Start of that part, as a share of the run.
        seed: Seed of initialization and crops.
        network: Name of the network F.
    """

    steps: int
    batch: int
    crop_px: int
    late_crop_px: int
    late_from: float
    seed: int
    network: str = DEFAULT_NETWORK


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The fusion loss.

    Attributes:
        intensity: Intensity term.
        gradient: Gradient term.
        coefficient: Its factor after the rise.
        coefficient_start: Share of that factor at the start.
        coefficient_rise: Share of the run over which it rises linearly.
    """

    intensity: IntensityTerm
    gradient: GradientTerm
    coefficient: float
    coefficient_start: float
    coefficient_rise: float


@dataclass(frozen=True, slots=True)
class MetaSettings:
    """Learning of P.

    Attributes:
        engine: How the meta-gradient is computed; ``off`` for a control run at the prior.
        reconstruct: Whether R is trained. P needs it; without P, it only tells how well both sources can be reconstructed.
        every: One in this many updates of F and R is also a meta cycle, which shares its crops and its pass of F.
        phase: If not 0, meta cycles and updates alternate in phases of this many steps instead.
        warm_up: Share of the run before P starts to learn.
        inner_rate: Step of the inner update, times the schedule.
        adapt_reconstruction: Whether R also takes an inner step.
        centered: Whether the brightness shift is left out of J v.
        accumulate: Number of meta-gradients averaged for one outer update.
        optimizer: ``adamw``, or ``max-normalized``: the gradient divided by its largest entry.
        learning_rate: Peak step of the outer update, times the schedule.
        betas: Decays of AdamW.
        eps: Floor of AdamW's denominator; raw meta-gradients are far below the usual 1e-8.
    """

    engine: Engine
    every: int
    phase: int
    warm_up: float
    inner_rate: float
    adapt_reconstruction: bool
    centered: bool
    accumulate: int
    optimizer: Literal["adamw", "max-normalized"]
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    reconstruct: bool = True


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Updates of F and R.

    Attributes:
        learning_rate: Peak of the schedule.
        schedule: ``cosine`` down to ``floor``, or ``steps``: times ``decay`` after every ``decay_every`` of the run.
        warm_up_steps: Steps of a linear rise at the start.
        floor: Share of the peak at the end of the cosine.
        decay: Factor of one step of the schedule.
        decay_every: Share of the run between two such steps.
        ema: Decay of the moving average of theta, which is what is validated and exported; 0 for none. At most 0.99
            in runs below 1,000 steps.
        fusion_frozen: Share of the run at its start in which F is frozen while R adapts to it; for an F that was
            trained before.
        clip: Largest norm of the gradient of F; a longer gradient is shortened to it. 0 for no limit.
        frozen: Beginnings of the names of parameters of F that stay as they are.
    """

    learning_rate: float
    schedule: Literal["cosine", "steps"]
    warm_up_steps: int
    floor: float
    decay: float
    decay_every: float
    ema: float
    fusion_frozen: float
    clip: float = 0.0
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Limits of the diagnostics beyond which P is frozen, see ``refusion_edge.train.diagnostics``.

    Attributes:
        slot: Largest difference of the mean weight of source a between both orders.
        swap: Largest mean change of the output when the inputs are swapped.
        share: Smallest and largest share of source a in the output.
        position: Smallest and largest position between the darker (0) and the brighter (1) source.
        margin: How much further a diagnostic may go if it was beyond its limit before P began to learn, and how far P may
            move the weights before ``swap``, ``share`` and ``position`` are attributed to it.
    """

    slot: float
    swap: float
    share: tuple[float, float]
    position: tuple[float, float]
    margin: float


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """Validation on held-back pairs.

    Attributes:
        every: Steps between two validations.
        held: Share of the pairs to hold back.
        crops: Fixed crops for the diagnostics.
        images: Whole images for the metrics.
        score: Metrics whose sum, with these factors, decides which weights are best; ``PSNR-sharp`` is the PSNR
            against the sharp image where defocus is synthetic, ``PSNR-teacher`` that against the teacher's result.
    """

    every: int
    held: float
    crops: int
    images: int
    score: dict[str, float]


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Checkpoints.

    Attributes:
        every: Steps between two checkpoints.
        keep: Number of checkpoints kept.
    """

    every: int
    keep: int


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Pairs in memory.

    Attributes:
        cache_mib: Memory for decoded luma planes; what does not fit is read again when drawn.
        sharp_scale: Factor by which sharp images are resized before defocus is synthesized.
        repeat: Prefixes of names, and how many times as often such pairs are drawn, so that a large set does not drown out
            a small one.
    """

    cache_mib: int
    sharp_scale: float
    repeat: dict[str, int]


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """Options that need a GPU.

    Attributes:
        bf16: Networks under bf16 autocast; losses, statistics and optimizers stay in float32.
        compile: ``torch.compile`` for F, except under forward-mode differentiation.
    """

    bf16: bool
    compile: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a run, one attribute per section; ``fast`` counts only for the network of this name."""

    run: RunSettings
    loss: LossSettings
    proposal: ProposalSettings
    meta: MetaSettings
    optimizer: OptimizerSettings
    guard: GuardSettings
    validation: ValidationSettings
    checkpoint: CheckpointSettings
    data: DataSettings
    tone: ToneSettings
    machine: MachineSettings
    fast: FastLayout = field(default_factory=FastLayout)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    outer: OuterSettings = field(default_factory=OuterSettings)
    shift: ShiftSettings = field(default_factory=ShiftSettings)

    def __post_init__(self) -> None:
        run, meta, optimizer, tone = self.run, self.meta, self.optimizer, self.tone
        find_network(run.network)
        above_zero = {
            "run.steps": run.steps,
            "run.batch": run.batch,
            "loss.coefficient_rise": self.loss.coefficient_rise,
            "meta.every": meta.every,
            "meta.accumulate": meta.accumulate,
            "meta.inner_rate": meta.inner_rate,
            "meta.learning_rate": meta.learning_rate,
            "optimizer.learning_rate": optimizer.learning_rate,
            "optimizer.decay_every": optimizer.decay_every,
            "validation.every": self.validation.every,
            "validation.crops": self.validation.crops,
            "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep": self.checkpoint.keep,
            "data.sharp_scale": self.data.sharp_scale,
            "tone.least_gain": tone.least_gain,
            "teacher.variants": self.teacher.variants,
            "shift.most_px": self.shift.most_px,
        }
        at_least_zero = {
            "run.seed": run.seed,
            "loss.coefficient": self.loss.coefficient,
            "proposal.clip": self.proposal.clip,
            "meta.phase": meta.phase,
            "meta.eps": meta.eps,
            "optimizer.warm_up_steps": optimizer.warm_up_steps,
            "optimizer.clip": optimizer.clip,
            "guard.margin": self.guard.margin,
            "validation.images": self.validation.images,
            "data.cache_mib": self.data.cache_mib,
            "teacher.intensity": self.teacher.intensity,
            "teacher.gradient": self.teacher.gradient,
            "teacher.loss": self.teacher.loss,
            "targets.detail": self.targets.detail,
            "targets.emphasis": self.targets.emphasis,
            **{f"outer.{name}": factor for name, factor in asdict(self.outer).items()},
        }
        shares = {
            "run.late_from": run.late_from,
            "loss.coefficient_start": self.loss.coefficient_start,
            "meta.warm_up": meta.warm_up,
            "optimizer.floor": optimizer.floor,
            "optimizer.ema": optimizer.ema,
            "optimizer.fusion_frozen": optimizer.fusion_frozen,
            "validation.held": self.validation.held,
            "tone.share": tone.share,
            "tone.glare": tone.glare,
            "shift.share": self.shift.share,
            "targets.clipped": self.targets.clipped,
            "targets.grain": self.targets.grain,
            "targets.gaps": self.targets.gaps,
            "targets.hot": self.targets.hot,
        }
        repeats = {f"data.repeat.{beginning}": times for beginning, times in self.data.repeat.items()}
        crops = {"run.crop_px": run.crop_px, "run.late_crop_px": run.late_crop_px}
        _require(above_zero, lambda value: value > 0, "above 0")
        _require(at_least_zero, lambda value: value >= 0, "at least 0")
        _require(shares, lambda value: 0 <= value <= 1, "from 0 to 1")
        _require({**repeats, "tone.gamma": tone.gamma}, lambda value: value >= 1, "at least 1")
        _require({"tone.least_gain": tone.least_gain}, lambda value: value <= 1, "at most 1")
        _require(crops, lambda value: value >= _MIN_CROP, f"at least {_MIN_CROP}")
        if meta.engine != "off" and not meta.reconstruct and (self.outer.reconstruction or meta.adapt_reconstruction):
            raise UsageError(
                "P cannot learn to help R without R",
                "set meta.reconstruct=true, or meta.engine=off, or let other terms of [outer] count instead of R",
            )
        if self.machine.bf16 and self.meta.engine == "exact-fd":
            raise UsageError(
                "machine.bf16 = true rounds away the differences of the engine exact-fd",
                "set machine.bf16=false or meta.engine=exact",
            )

    def to_tables(self) -> dict[str, Any]:
        """Plain tables, the inverse of ``from_tables``."""
        return asdict(self)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> Settings:
        """Validate plain tables and convert them to settings.

        Raises:
            UsageError: A name is unknown or missing, or a value has the wrong type or range.
        """
        return typed(cls, _respelled(tables), "", error=UsageError)

    def differences(self, other: Settings) -> list[str]:
        """Differences from other settings, as ``name = value (other value)``."""
        mine, theirs = dict(_flat(self.to_tables())), dict(_flat(other.to_tables()))
        names = sorted(mine.keys() | theirs.keys())
        return [
            f"{name} = {mine.get(name)} ({theirs.get(name)})"
            for name in names
            if _plain(mine.get(name)) != _plain(theirs.get(name))
        ]


# British spellings of earlier versions, which presets, checkpoints and commands may still have.
_SPELLINGS = {"optimiser": "optimizer", "centred": "centered", "max-normalised": "max-normalized"}
_MIN_CROP = 16
_MOST_BYTES = 1 << 18


def resolve(
    preset: str, task: str, *, device: str, assignments: Iterable[str] = (), network: str = DEFAULT_NETWORK
) -> Settings:
    """Resolve the settings of a run.

    Args:
        preset: Name of a preset, or path of a TOML file of the same form.
        task: Name of the task.
        device: ``cpu`` or ``cuda``.
        assignments: ``section.key=value``, the value in TOML notation; a bare word counts as text.
        network: Name of the network to train.

    Raises:
        UsageError: The preset does not exist or is not TOML, a name is unknown, or a value does not fit.
    """
    tables = _respelled(_read_preset(preset))
    of_networks, of_tasks, of_cuda = (
        typed(dict[str, Any], tables.pop(name, {}), name, error=UsageError) for name in ("networks", "tasks", "cuda")
    )
    _merge(tables, typed(dict[str, Any], of_networks.get(network, {}), f"networks.{network}", error=UsageError))
    _merge(tables, {"run": {"network": network}})
    of_task = typed(dict[str, Any], of_tasks.get(task, {}), f"tasks.{task}", error=UsageError)
    if device == "cuda":
        _merge(tables, of_cuda)
    _merge(tables, of_task)
    return Settings.from_tables(_assigned(tables, assignments))


def with_assignments(settings: Settings, assignments: Iterable[str]) -> Settings:
    """Change some settings.

    Args:
        settings: What to change.
        assignments: ``section.key=value``, as for ``resolve``.

    Raises:
        UsageError: A name is unknown, or a value does not fit.
    """
    return Settings.from_tables(_assigned(settings.to_tables(), assignments))


def _assigned(tables: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        section, _, key = name.strip().partition(".")
        if not separator or not key:
            raise UsageError(f"'{assignment}' is not an assignment", "write --set section.key=value")
        _merge(tables, _respelled({section: _nested(key, _parse_value(text.strip()))}))
    return tables


def _respelled(value: Any) -> Any:
    """A value, or tables of values, in today's spelling."""
    if isinstance(value, Mapping):
        for former, name in _SPELLINGS.items():
            if former in value and name in value:
                raise UsageError(f"'{former}' and '{name}' are one name in two spellings", f"put all values under '{name}'")
        return {_SPELLINGS.get(name, name): _respelled(below) for name, below in value.items()}
    return _SPELLINGS.get(value, value) if isinstance(value, str) else value


def _require(values: Mapping[str, float], fits: Callable[[float], bool], expected: str) -> None:
    for name, value in values.items():
        if not fits(value):
            raise UsageError(f"{name} has to be {expected}, not {value}", "correct it", expected=expected, got=value)


def _read_preset(preset: str) -> dict[str, Any]:
    path = Path(__file__).parent / "presets" / f"{preset}.toml" if preset in PRESETS else Path(preset)
    if preset not in PRESETS and not path.exists():
        raise UsageError(
            f"there is no preset '{preset}'",
            f"name one of {', '.join(PRESETS)} or a TOML file",
            expected=tuple(PRESETS),
            got=preset,
        )
    data = read_file(path, kind="preset", most_bytes=_MOST_BYTES, error=UsageError)
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no TOML file ({brief(error)})", "correct it") from error


def _merge(tables: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tables.get(name), dict):
            _merge(tables[name], value)
        else:
            tables[name] = value


def _nested(key: str, value: Any) -> dict[str, Any]:
    first, separator, rest = key.partition(".")
    return {first: _nested(rest, value) if separator else value}


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, _joined(prefix, key))
        else:
            yield _joined(prefix, key), value


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
