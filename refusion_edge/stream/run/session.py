"""One stream from its settings: opens sources, rig, engine and outputs, runs them, and makes the report."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusion_edge.backends.registry import AdaptedBackend
from refusion_edge.bundle.trust import trust_path
from refusion_edge.errors import UsageError
from refusion_edge.fuser import Fuser, load
from refusion_edge.network.weights import shipped_tasks
from refusion_edge.rig.model import Rig
from refusion_edge.stream.outputs.clips import Clips
from refusion_edge.stream.outputs.display import has_display
from refusion_edge.stream.outputs.recording import FrameRecorder, Recorder, Recording, read_recording, require_room
from refusion_edge.stream.outputs.registry import open_sink
from refusion_edge.stream.outputs.ring import RingRecorder
from refusion_edge.stream.outputs.sinks import Sink
from refusion_edge.stream.processing.adaptation import Adaptation
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.run.networks import AUTO, BETTER, FASTER, NetworkChooser, NetworkPlan, PlannedNetworks
from refusion_edge.stream.run.pipeline import Pipeline, RunLimits
from refusion_edge.stream.run.recovery import RecoveringBackend
from refusion_edge.stream.run.refinement import Refinement, RigRefiner
from refusion_edge.stream.run.settings import PairingSettings, StreamSettings, choose_pairing
from refusion_edge.stream.run.shared import Shared
from refusion_edge.stream.run.tap import Tap
from refusion_edge.stream.run.watchdog import Watchdog
from refusion_edge.stream.sources.pacing import PacedSource
from refusion_edge.stream.sources.registry import open_pair
from refusion_edge.stream.sources.source import Source
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import Uri, choose_source, frame_pattern, parse_output

_DEFAULT_VIEW = "view://127.0.0.1:8080"
_DEFAULT_TASK = "ir_vis"


class StreamSession:
    """A stream with the settings of a user.

    Args:
        settings: Options of the stream.
        fuser: Runs the network in place of the one that the settings name; closed at the end.
        refinement: Follows slow changes of the rig, such as ``calibration.rig.tracking.OnlineRefinement``; None keeps the rig
            fixed.
        sinks: More outputs, not entered yet.

    Attributes:
        stop: Set it from any thread to end the stream.
        statistics: Counters of the stream, which can be read while it runs.
    """

    def __init__(
        self,
        settings: StreamSettings,
        *,
        fuser: Fuser | None = None,
        refinement: Refinement | None = None,
        sinks: Sequence[Sink] = (),
        shared: Shared | None = None,
    ) -> None:
        self.settings = settings
        self._shared = shared
        self._sinks = sinks
        self.statistics = Statistics()
        self.stop = threading.Event()
        self._fuser = fuser
        self._refinement = refinement
        self._output_sha256: str | None = None
        self._engine: RunningEngine | None = None

    def run(self, announce: Callable[[str], object] = lambda _text: None, tap: Tap | None = None) -> None:
        """Run until the sources end, a limit is reached or ``stop`` is set.

        Args:
            announce: Called at the start with messages for the user, such as the address of the browser view.
            tap: Delivers the fused frames to a Python program; without outputs, they go only there.

        Raises:
            RefusionError: An input, an output or an option cannot be used; see ``errors`` for the exit codes.
            KeyboardInterrupt: A signal arrived; everything is closed by then.
        """
        settings = self.settings
        rig = _read_rig(settings)
        sources = self._sources(rig)
        live = not isinstance(sources, Recording) and any(source.live for source in sources)
        recorded = sources.settings if isinstance(sources, Recording) else None
        pairing = choose_pairing(settings, rig, recorded, live=live)
        failover = pairing.failover(rig)
        refiner = self._refiner(rig)
        gain, stretch, geometry = self._processing(rig)
        uris = [parse_output(text) for text in settings.outputs]
        if not (uris or self._sinks or tap):
            uris = [parse_output(self._default_output())]
        # The certificate of a site is for its page, which not every rig needs to be on.
        if self._shared is None and all(uri.scheme != "view" for uri in uris):
            for option in ("tls", "clips"):
                if getattr(settings, option) is not None:
                    raise UsageError(
                        f"--{option} is for the browser view, which is not among the outputs", "add -o view://, or leave it out"
                    )
        _refuse_overwriting(sources, uris, settings.record)
        recorder = self._recorder(pairing)
        rate_hz = None if isinstance(sources, Recording) else _rate(sources)
        sinks = [*(self._sink(uri, gain, announce, rate_hz=rate_hz, live=live) for uri in uris), *self._sinks]
        with contextlib.ExitStack() as engines:
            fuser, networks = self._engines(engines, sources, pairing, announce)
            adaptation = Adaptation(settings.smooth_s)
            self._engine = RunningEngine(fuser, networks, adaptation)
            processor = Processor(
                fuser.backend,
                gain=gain,
                stretch=stretch,
                adaptation=adaptation,
                geometry=geometry,
                color=not settings.gray,
                marks=settings.marks,
                took=self.statistics.took,
                remark=self.statistics.remark,
            )
            pipeline = Pipeline(
                sources,
                failover,
                processor,
                sinks,
                self.statistics,
                limits=RunLimits(settings.give_up_s, settings.duration_s, frames=settings.frames),
                recorder=recorder,
                refiner=refiner,
                networks=networks,
                tap=tap,
                hashed=settings.hash or settings.replay is not None or settings.record is not None,
                stop=self.stop,
                # Of several rigs, one that works says nothing about the others.
                watchdog=Watchdog({}) if self._shared is not None else Watchdog(),
            )
            try:
                pipeline.run()
            finally:
                self._output_sha256 = pipeline.sha256

    def report(self) -> dict[str, Any] | None:
        """The report of the run, schema ``refusion-edge/stream/1``; None if it never started."""
        if self._engine is None:
            return None
        return {
            "schema": "refusion-edge/stream/1",
            "settings": self.settings.shown(),
            "network": self._engine.report(),
            "output_sha256": self._output_sha256,
            **self.statistics.snapshot(),
        }

    def _engines(
        self,
        engines: contextlib.ExitStack,
        sources: tuple[Source, Source] | Recording,
        pairing: PairingSettings,
        announce: Callable[[str], object],
    ) -> tuple[Fuser, NetworkPlan | None]:
        """Open the engine that the run begins with, and decide how its network is chosen."""
        if self._fuser is not None:
            return engines.enter_context(self._fuser), None
        settings = self.settings
        if settings.network != AUTO:
            fuser = engines.enter_context(self._load(settings.network))
            return fuser, None if fuser.network is None else PlannedNetworks([(0, fuser.network)], self._load)
        explicit, task = settings.bundle or settings.weights, settings.task or _DEFAULT_TASK
        planned: Sequence[tuple[int, str]] = [(0, BETTER)]
        if explicit is not None:
            fuser = engines.enter_context(self._load(None))
            planned = [(0, fuser.network or BETTER)]
            reason = f"{fuser.network}, as {explicit} holds it; an explicit file leaves auto nothing to choose"
        elif isinstance(sources, Recording):
            planned = sources.networks or planned
            how = "as recorded" if sources.networks else "as the recording does not name its network"
            reason = f"{', then '.join(name for _, name in planned)}, {how}"
        elif task not in shipped_tasks(FASTER):
            reason = f"auto chose {BETTER}: the package has no weights of {FASTER} for {task}"
        elif not any(source.live for source in sources):
            reason = f"auto chose {BETTER}: files wait for the network"
        else:
            fuser = engines.enter_context(self._load(FASTER))
            chooser = NetworkChooser(self._load, self.statistics, fastest=pairing.policy != "drop", announce=announce)
            return fuser, engines.enter_context(chooser)
        announce(f"network: {reason}")
        if explicit is None:
            fuser = engines.enter_context(self._load(planned[0][1]))
        return fuser, engines.enter_context(PlannedNetworks(planned, self._load, reason))

    def _load(self, network: str | None) -> Fuser:
        settings = self.settings
        source = settings.bundle or settings.weights or settings.task or _DEFAULT_TASK
        task = settings.task if source != settings.task else None

        if settings.trust and settings.bundle is not None:
            trust_path(settings.bundle)

        def open_engine() -> Fuser:
            return load(source, task=task, backend=settings.backend, threads=settings.threads, streaming=True, network=network)

        if self._shared is not None:
            key = source, task, settings.backend, settings.threads, network
            rig = self._shared
            return rig.engines.lease(key, open_engine, rig.rig, rig.share, self.statistics)
        opened = open_engine()
        backend = RecoveringBackend(opened.backend, lambda: open_engine().backend, self.statistics.reopened)
        return Fuser(backend, opened.task, opened.output_range, opened.choice, network=opened.network)

    def _recorder(self, pairing: PairingSettings) -> FrameRecorder | None:
        settings = self.settings
        if settings.record is None:
            if settings.record_limit is not None:
                raise UsageError("--record-limit needs a recording", "add --record DIR")
            return None
        folder = Path(settings.record)
        require_room(folder, overwrite=settings.overwrite)  # now, before an engine is opened
        shown = {"pairing": asdict(pairing), "sources": settings.shown()}
        if settings.record_limit is None:
            return Recorder(folder, shown, overwrite=settings.overwrite)
        return RingRecorder(folder, shown, settings.record_limit, overwrite=settings.overwrite)

    def _sources(self, rig: Rig | None) -> tuple[Source, Source] | Recording:
        settings = self.settings
        if settings.replay is not None:
            if settings.ir or settings.vis or settings.record:
                raise UsageError("--replay cannot be combined with --ir, --vis or --record", "leave them out")
            return read_recording(Path(settings.replay))
        ir = choose_source(settings.ir, rig.ir.uri if rig else None, trusted=settings.trust)
        vis = choose_source(settings.vis, rig.vis.uri if rig else None, trusted=settings.trust)
        if ir is None or vis is None:
            raise UsageError("a stream needs two sources", "give --ir and --vis, a --rig that names them, or --replay")
        opened = open_pair(ir, vis, best_effort=settings.best_effort)
        if opened[0].live != opened[1].live:
            return (
                opened[0] if opened[0].live else PacedSource(opened[0], stop=self.stop),
                opened[1] if opened[1].live else PacedSource(opened[1], stop=self.stop),
            )
        return opened

    def _processing(self, rig: Rig | None) -> tuple[ThermalGain, OutputStretch, Geometry]:
        settings = self.settings
        gain = ThermalGain(
            settings.gain or (rig.gain if rig else "percentile"),
            polarity=settings.polarity or (rig.polarity if rig else "white"),
            time_constant_s=settings.smooth_s,
        )
        stretch = OutputStretch(settings.output_range, time_constant_s=settings.smooth_s)
        if rig is None:
            if settings.distance is not None:
                raise UsageError("--distance needs a rig", "add --rig")
            return gain, stretch, Geometry(resize=settings.resize)
        from refusion_edge.rig.warp import make_warp

        return gain, stretch, Geometry(make_warp(rig, settings.distance))

    def _refiner(self, rig: Rig | None) -> RigRefiner | None:
        if self._refinement is None:
            return None
        if rig is None:
            raise UsageError("there is no rig to refine", "add --rig, or leave --refine out")
        return RigRefiner(self._refinement, rig, self.settings.distance, self.statistics)

    def _default_output(self) -> str:
        return "display://0" if has_display() and not self.settings.headless else _DEFAULT_VIEW

    def _clips(self, prefix: str = "") -> Clips | None:
        folder = self.settings.clips
        if folder is None:
            return None
        return Clips(Path(folder), prefix, note=lambda text: self.statistics.note("view", text))

    def _sink(
        self, uri: Uri, gain: ThermalGain, announce: Callable[[str], object], *, rate_hz: float | None, live: bool
    ) -> Sink:
        settings = self.settings
        if uri.scheme == "view" and self._shared is not None and self._shared.page is not None:
            from refusion_edge.stream.outputs.view import ViewSink

            return ViewSink(
                uri,
                self.statistics,
                gain,
                server=self._shared.page,
                rig=self._shared.rig,
                clips=self._clips(f"{self._shared.rig}-"),
            )
        if uri.scheme == "display" and settings.headless:
            raise UsageError(f"--headless excludes the window {uri}", "leave one of them out")
        return open_sink(
            uri, rate_hz=rate_hz, live=live, statistics=self.statistics, gain=gain, stop=self.stop, token=settings.token,
            allow_origins=settings.allow_origins, tls=settings.tls, clips=self._clips(), overwrite=settings.overwrite,
            announce=announce,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """What fuses the pairs of a run.

    Attributes:
        fuser: The engine at its start.
        networks: How its network is chosen, or None if it stays.
        adaptation: Statistics that ``fast`` adapts to.
    """

    fuser: Fuser
    networks: NetworkPlan | None
    adaptation: Adaptation

    def report(self) -> dict[str, Any]:
        """As plain values for the report of the run."""
        used = [] if self.networks is None else self.networks.used
        network, backend = used[-1][1] if used else self.fuser.network, self.fuser.backend
        statistics = None
        if network == FASTER:
            statistics = "smoothed" if isinstance(backend, AdaptedBackend) and backend.adapts else "of each frame"
        decisions = [] if self.networks is None else self.networks.decisions
        return {
            "name": network,
            "backend": backend.name,
            "statistics": statistics,
            "scene_cuts": self.adaptation.cuts,
            "used": [{"first_pair": number, "name": name} for number, name in used],
            "decisions": [decision.to_json() for decision in decisions],
        }


def _read_rig(settings: StreamSettings) -> Rig | None:
    if settings.rig is None:
        return None
    from refusion_edge.rig.file import read_rig

    return read_rig(settings.rig)


def _refuse_overwriting(sources: tuple[Source, Source] | Recording, outputs: list[Uri], record: str | None) -> None:
    """Require that outputs and the recording differ from the sources and from each other, and that none is in the recording."""
    read = (
        [sources.folder, sources.folder / "ir", sources.folder / "vis"]
        if isinstance(sources, Recording)
        else [_folder(source.uri.target) for source in sources if source.uri.scheme == "file"]
    )
    # Not Path.resolve, which raises for a link to itself.
    taken = {_identity(path): os.path.realpath(path) for path in read}
    written = [(str(uri), _folder(uri.target)) for uri in outputs if uri.scheme == "file"]
    for name, path in written + ([] if record is None else [(record, Path(record))]):
        if _identity(path) in taken:
            raise UsageError(f"{name} is already a source or another output", "choose another name")
        taken[_identity(path)] = os.path.realpath(path)
    if record is not None:
        # A recording is replaced as a whole, and its folders of images are sources of their own.
        folder = Path(os.path.realpath(record))
        inside = next((path for path in sorted(taken.values()) if folder in Path(path).parents), None)
        if inside is not None:
            raise UsageError(
                f"{inside} is a source or an output in the folder of the recording {record}", "choose another name"
            )


def _identity(path: Path) -> object:
    """The same for all names of a file, also for hard links."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _folder(target: str) -> Path:
    """The path to protect: the folder of a pattern, else the file or folder itself."""
    return Path(target).parent if frame_pattern(target) is not None else Path(target)


def _rate(sources: tuple[Source, Source]) -> float | None:
    """Nominal rate of the faster camera."""
    rates = [source.rate_hz for source in sources if source.rate_hz is not None]
    return max(rates) if rates else None
