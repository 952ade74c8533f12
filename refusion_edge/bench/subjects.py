"""What is measured: an engine, the images it fuses, and its files, which must not change during the measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusion_edge.accuracy.gate import resized
from refusion_edge.backends.registry import AUTO, choose_runner
from refusion_edge.bundle.folder import EngineBundle, read_bundle, sha256
from refusion_edge.bundle.manifest import WEIGHTS, GateNotRun
from refusion_edge.errors import BundleError, CheckpointError, UsageError
from refusion_edge.fuser import Fuser, load
from refusion_edge.images.color import OutputRange
from refusion_edge.images.pairs import ImagePair, PairPaths, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.checkpoint import read_checkpoint, require_network
from refusion_edge.network.cost import Work
from refusion_edge.network.family import DEFAULT_NETWORK, network_of, shapes_of
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS

DEFAULT_HW = (480, 640)


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a measurement.

    Attributes:
        name: Its name in tables: a task, a bundle or a weights file.
        task: Name of the task.
        precision: Precision of the engine.
        size_hw: Height and width of the images.
        backend: Back end it runs on.
        threads: Threads requested; 0 for the back end's own choice.
        color: Whether the images keep the color of the sources.
        output_range: Output range, ``stretch`` or ``fixed``.
        network: Name of the network.
    """

    name: str
    task: str
    precision: str
    size_hw: tuple[int, int]
    backend: str
    threads: int
    color: bool = True
    output_range: OutputRange = "stretch"
    network: str = DEFAULT_NETWORK

    @property
    def size_text(self) -> str:
        """``480x640`` (height x width)."""
        return f"{self.size_hw[0]}x{self.size_hw[1]}"

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.size_hw[0] * self.size_hw[1]

    @property
    def label(self) -> str:
        """The identity in a few words."""
        finish = [] if self.network == DEFAULT_NETWORK else [self.network]
        finish += [] if self.color else ["gray"]
        finish += [] if self.output_range == "stretch" else [self.output_range]
        return " ".join([self.name, self.precision, self.size_text, *finish])


@dataclass(frozen=True, slots=True)
class Quality:
    """How close an engine's images are to those of the fp32 reference, according to its accuracy gate.

    Attributes:
        psnr_db: PSNR in dB; None for equal images.
        ssim: Structural similarity.
    """

    psnr_db: float | None
    ssim: float


@dataclass(frozen=True, slots=True)
class Subject:
    """One engine to measure, with its images.

    Attributes:
        identity: Its identity.
        origin: Folder of the bundle, weights file, or task.
        files: SHA-256 of the files it is loaded from, name to hex digits.
        quality: Result of its accuracy gate; None for weights that run directly.
        open: Opens the fuser, to be used in a ``with`` statement.
        source: Returns the pair of images.
        captured: Whether reading the pair is a stage of its own.
        work: Cost of its network per pixel.
    """

    identity: Identity
    origin: str
    files: dict[str, str]
    quality: Quality | None
    open: Callable[[], Fuser]
    source: Callable[[], ImagePair]
    captured: bool
    work: Work

    def check_unchanged(self) -> None:
        """Check that the files are still those that were measured.

        Raises:
            BundleError: The bundle changed.
            CheckpointError: The weights file changed.
        """
        name, origin = self.identity.name, self.origin
        if Path(origin).is_dir():
            if _bundle_files(read_bundle(origin)) != self.files:
                raise BundleError(f"the bundle {name} was changed while it was measured", "measure again")
        elif _weights_files(origin, self.identity.network) != self.files:
            raise CheckpointError(f"the weights {name} were changed while they were measured", "measure again")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Options for turning names into subjects.

    Attributes:
        task: Task of weights that do not name theirs.
        backend: Back end, or ``auto``.
        threads: Threads, 0 for the back end's own choice.
        sizes_hw: Sizes to measure at; empty for the size of a fixed engine, or else 480x640.
        pair: Files read again for every run; None for a sample pair held in memory.
        color: Whether the images keep the color of the sources.
        output_range: Output range.
        network: Name of the network, or None for that of the bundle or file, and ``refusion`` for a task.
    """

    task: str | None = None
    backend: str = AUTO
    threads: int = 0
    sizes_hw: tuple[tuple[int, int], ...] = ()
    pair: PairPaths | None = None
    color: bool = True
    output_range: OutputRange = "stretch"
    network: str | None = None


def find_subjects(origin: str, wanted: Wanted, *, name: str = "") -> tuple[Subject, ...]:
    """Create one subject per size.

    Args:
        origin: Folder of a bundle, weights file, or task.
        wanted: Options.
        name: Its name in tables; its origin if empty.

    Raises:
        UsageError: The bundle has a fixed size other than the one requested, or the weights do not name their task.
        BundleError: The bundle is damaged.
        CheckpointError: The weights cannot be used.
    """
    bundle = read_bundle(origin) if Path(origin).is_dir() else None
    if bundle is not None:
        task, precision = bundle.manifest.task, bundle.manifest.precision
        backend = bundle.manifest.backend if wanted.backend == AUTO else wanted.backend
        gate = bundle.manifest.gate
        quality = None if isinstance(gate, GateNotRun) else Quality(gate.psnr_db, gate.ssim)
        files = _bundle_files(bundle)
        checkpoint = read_checkpoint(bundle.path / WEIGHTS)
    else:
        checkpoint = read_checkpoint(weights_path(origin, wanted.network or DEFAULT_NETWORK) if origin in TASKS else origin)
        task, precision, quality = _task_of(origin, checkpoint.task, wanted.task), "fp32", None
        backend = choose_runner(wanted.backend, checkpoint.network).name
        files = _weights_files(origin, checkpoint.network)
    require_network(checkpoint, wanted.network, origin)
    network = checkpoint.network
    work = network_of(checkpoint.state).work(shapes_of(checkpoint.state), precision)

    def open_fuser() -> Fuser:
        return load(
            origin,
            task=wanted.task,
            backend=backend,
            output_range=wanted.output_range,
            threads=wanted.threads,
            network=network,
        )

    subjects = []
    for size_hw in _sizes(bundle, wanted):
        identity = Identity(
            name or origin, task, precision, size_hw, backend, wanted.threads, wanted.color, wanted.output_range, network
        )
        source = _file_source(wanted.pair) if wanted.pair else _memory_source(task, size_hw)
        captured = wanted.pair is not None
        subjects.append(Subject(identity, origin, files, quality, open_fuser, source, captured, work))
    return tuple(subjects)


def require_comparable(subjects: Sequence[Subject]) -> None:
    """Check that two subjects do the same work.

    Raises:
        UsageError: Their tasks or sizes differ.
    """
    first, second = (subject.identity for subject in subjects)
    for what, one, other in (("task", first.task, second.task), ("size", first.size_text, second.size_text)):
        if one != other:
            raise UsageError(
                f"cannot compare {first.name} and {second.name}: their {what}s are {one} and {other}",
                "compare like with like",
                expected=one,
                got=other,
            )


def _sizes(bundle: EngineBundle | None, wanted: Wanted) -> tuple[tuple[int, int], ...]:
    if wanted.pair is not None:
        image = read_pair(wanted.pair).a
        return ((image.shape[0], image.shape[1]),)
    if bundle is None:
        return wanted.sizes_hw or (DEFAULT_HW,)
    height, width = bundle.manifest.inputs[0].shape[2:]
    if height is None or width is None:
        return wanted.sizes_hw or (DEFAULT_HW,)
    for size_hw in wanted.sizes_hw:
        if size_hw != (height, width):
            raise UsageError(
                f"cannot measure the bundle {bundle.path} at {size_hw[0]}x{size_hw[1]}: it was built for {height}x{width}",
                "leave out --sizes, or build one with --size dynamic",
                expected=(height, width),
                got=size_hw,
            )
    return ((height, width),)


def _task_of(name: str, known: str | None, asked: str | None) -> str:
    task = name if name in TASKS else known or asked
    if task is None:
        raise UsageError(f"the weights {name} do not name their task", f"add --task ({', '.join(TASKS)})")
    return task


def _memory_source(task: str, size_hw: tuple[int, int]) -> Callable[[], ImagePair]:
    pair = resized(read_pair(sample_paths(task)[0]), size_hw)
    return lambda: pair


def _file_source(paths: PairPaths) -> Callable[[], ImagePair]:
    return lambda: read_pair(paths)


def _bundle_files(bundle: EngineBundle) -> dict[str, str]:
    return dict(sorted(bundle.manifest.files.items()))


def _weights_files(name: str, network: str) -> dict[str, str]:
    path = weights_path(name, network) if name in TASKS else Path(name)
    try:
        return {path.name: sha256(path.read_bytes())}
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights file {path}: {error.strerror}", "put it back and measure again"
        ) from error
