"""The stream object for Python programs: an iterable of fused frames that opens, runs and closes everything it needs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from typing import Any, cast

from typing_extensions import Self

from refusion_edge.errors import StreamError, UsageError
from refusion_edge.fuser import Fuser
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.outputs.sinks import Sink
from refusion_edge.stream.run.config import read_config
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings, override
from refusion_edge.stream.run.shared import Shared
from refusion_edge.stream.run.tap import Tap
from refusion_edge.stream.statistics import Health
from refusion_edge.text import printable, redact

Name = str | os.PathLike[str]

# Longer than the pipeline takes to give up on a part that hangs.
_END_S = 30.0
_OF_A_SINK = ("name", "capacity", "lossless", "__enter__", "__exit__", "write")
_LOG = logging.getLogger("refusion_edge")


class FusedStream:
    """Fused frames of two cameras or files, in order, each with both views, masks, times and marks.

    Iterate over it with ``for`` or ``async for``, or call ``run`` to feed only its outputs; either can be done once. Sources,
    engine and outputs are opened when the first frame is requested, and closed when the loop is left, however that happens.
    Cameras keep running while the program works on a frame, and the newest frame comes next; from files, every frame is used.

    The program may change the fused image of a frame; the other arrays are read-only.

    Args:
        settings: Options of the stream.
        fuser: Runs the network instead of the one that the settings name; closed at the end.
        sinks: More outputs, not entered yet.
        announce: Called with messages for the user, such as the address of the browser view.
        shared: What it shares with other rigs of the process; see ``refusion_edge.stream.site``.

    Raises:
        RefusionError: While iterating or running: a source, an output or the engine failed; everything is closed by then.
    """

    def __init__(
        self,
        settings: StreamSettings,
        *,
        fuser: Fuser | None = None,
        sinks: Sequence[Sink] = (),
        announce: Callable[[str], object] = _LOG.info,
        shared: Shared | None = None,
    ) -> None:
        refinement = None
        if settings.refine is not None:
            from refusion_edge.calibration.rig.tracking import Bounds, OnlineRefinement

            refinement = OnlineRefinement(Bounds(shift_px=settings.refine))
        self.settings = settings
        self._session = StreamSession(settings, fuser=fuser, refinement=refinement, sinks=sinks, shared=shared)
        self._announce = announce
        self._run: _Run | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        with contextlib.suppress(Exception) if kind is not None else contextlib.nullcontext():
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *rest: object) -> None:
        await asyncio.to_thread(self.__exit__, kind, *rest)

    def __iter__(self) -> Generator[FusedFrame, None, None]:
        run = self._start()
        try:
            while (frame := run.tap.get()) is not None:
                yield frame
        finally:
            run.end()
        run.raise_failure()

    async def __aiter__(self) -> AsyncGenerator[FusedFrame, None]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        run = self._start(lambda: loop.call_soon_threadsafe(ready.set))
        try:
            while not run.tap.ended:
                ready.clear()
                if (frame := run.tap.get(0)) is not None:
                    yield frame
                elif not run.tap.ended:
                    await ready.wait()
        finally:
            await asyncio.to_thread(run.end)
        run.raise_failure()

    def run(self) -> None:
        """Run in this thread until the sources end, a limit is reached or ``close`` is called; only the outputs get frames.

        Without outputs, that is a window if there is a display, and otherwise the browser view.

        Raises:
            RefusionError: See above.
            KeyboardInterrupt: A signal arrived; everything is closed by then.
        """
        self._begin(_Run(self._session))
        self._session.run(self._announce)

    def close(self) -> None:
        """End the stream and close all that it opened. May be called from any thread, and more than once.

        Raises:
            RefusionError: It failed, and the error has not been raised yet.
        """
        if self._run is not None:
            self._run.end()
            self._run.raise_failure()

    def stop(self) -> None:
        """Request its end, without waiting; ``run`` then returns. May be called from any thread."""
        self._session.stop.set()

    def health(self) -> Health:
        """Whether it works now."""
        return self._session.statistics.health()

    @property
    def count(self) -> int:
        """Number of fused frames so far."""
        return self._session.statistics.count

    def listen(self, listener: Callable[[str, str], object]) -> None:
        """Call a function for every event of the report as it happens, with its place, such as ``ir``, and what happened.

        It is called from the threads of the stream and must return quickly.
        """
        self._session.statistics.listen(listener)

    def report(self) -> dict[str, Any] | None:
        """The report so far, schema ``refusion-edge/stream/1``; None before the engine is open."""
        return self._session.report()

    def __repr__(self) -> str:
        settings = self.settings
        sources = [settings.replay] if settings.replay is not None else [settings.ir, settings.vis]
        names = " + ".join("?" if name is None else printable(redact(name)) for name in sources)
        state = "not started" if self._run is None else "ended" if self._run.ended else "running"
        count = self._session.statistics.snapshot()["pairs"]["shown"]
        return f"<{type(self).__name__} {names}, network {settings.network or 'by default'}, {state}, {count} fused frames>"

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.failure is not None:
            _LOG.error("a stream that was left early failed: %s", run.failure)

    def _begin(self, run: _Run) -> None:
        if self._run is not None:
            raise UsageError("this stream has already run, and a stream runs only once", "open another one")
        self._run = run

    def _start(self, notify: Callable[[], object] = lambda: None) -> _Run:
        run = _Run(self._session)
        self._begin(run)
        run.tap.listen(notify)
        # Nothing must hold the stream itself, so that it ends as soon as the program lets go of it, or ends itself.
        weakref.finalize(self, run.end)
        run.start(self._announce)
        return run


class _Run:
    """The thread behind an iteration.

    Attributes:
        tap: Where its frames come from.
        failure: Its error, until it is raised.
    """

    def __init__(self, session: StreamSession) -> None:
        self.tap = Tap()
        self.failure: BaseException | None = None
        self._session = session
        self._thread: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        return self._session.stop.is_set() if self._thread is None else not self._thread.is_alive()

    def start(self, announce: Callable[[str], object]) -> None:
        def work() -> None:
            try:
                self._session.run(announce, self.tap)
            except BaseException as error:  # raised where the program iterates
                self.failure = error
            finally:
                self.tap.close()

        self._thread = threading.Thread(target=work, name="stream", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop, and wait until everything is closed."""
        self._session.stop.set()
        if self._thread is None or self._thread is threading.current_thread():
            return
        self.tap.close()
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self.failure = self.failure or StreamError(f"the stream did not end within {_END_S:g} s", "end the program")

    def raise_failure(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


def open_stream(
    ir: Name | int | None = None,
    vis: Name | int | None = None,
    *,
    outputs: Name | Sink | Iterable[Name | Sink] = (),
    config: Name | None = None,
    fuser: Fuser | None = None,
    announce: Callable[[str], object] = _LOG.info,
    **options: Any,
) -> FusedStream:
    """Fuse two live cameras, videos or image folders: ``for frame in refusion_edge.stream(ir, vis): ...``.

    Args:
        ir: The infrared source, as the command ``stream`` takes it: a URI, a file, a folder, or the number of a camera.
        vis: The visible source.
        outputs: Where the fused frames go as well: URIs, files, folders, or objects that implement
            ``refusion_edge.stream.outputs.sinks.Sink``.
        config: Configuration file; the arguments take precedence over it.
        fuser: Runs the network instead of the one that the options name; closed at the end.
        announce: Called with messages for the user, such as the address of the browser view; by default they are logged.
        **options: The other settings, by the names of ``refusion_edge.stream.run.settings.StreamSettings``, such as
            ``network="auto"``, ``rig="rig.yaml"`` or ``max_skew_ms=20``.

    Raises:
        UsageError: An option is unknown (the remedy names the nearest one), out of range, or contradicts another one; or an
            output is neither a name nor a sink.
        InputError: The configuration file cannot be used.
    """
    names, sinks = _outputs(outputs)
    given = {"ir": ir, "vis": vis, **options}
    given = {name: value for name, value in given.items() if value is not None}
    if names:
        given["outputs"] = names
    trust = options.get("trust") is True
    stored = StreamSettings() if config is None else read_config(config, trust=trust)
    return FusedStream(override(stored, given), fuser=fuser, sinks=sinks, announce=announce)


def _outputs(outputs: Name | Sink | Iterable[Name | Sink]) -> tuple[list[str], list[Sink]]:
    """Names of outputs, and outputs that are objects."""
    names: list[str] = []
    sinks: list[Sink] = []
    every = [outputs] if isinstance(outputs, str | os.PathLike) or hasattr(outputs, "write") else outputs
    for each in cast("Iterable[Any]", every):
        if isinstance(each, str | os.PathLike):
            names.append(os.fspath(each))
        elif all(hasattr(each, name) for name in _OF_A_SINK):
            sinks.append(each)
        else:
            raise UsageError(
                f"an output is a {type(each).__name__}, which cannot receive frames",
                f"give a URI, a file, a folder, or an object with {', '.join(_OF_A_SINK)}",
                expected=_OF_A_SINK,
                got=type(each).__name__,
            )
    return names, sinks


def fuse_video(ir: Name, vis: Name, output: Name, **options: Any) -> dict[str, Any]:
    """Fuse two videos, folders or recordings of cameras into a video or a folder.

    Args:
        ir: The infrared source, see ``open_stream``.
        vis: The visible source.
        output: A video file or a folder; one of an earlier run is replaced only with ``overwrite=True``.
        **options: See there.

    Returns:
        The report of the run, schema ``refusion-edge/stream/1``.

    Raises:
        RefusionError: See ``FusedStream``.
    """
    stream = open_stream(ir, vis, outputs=[output], **options)
    stream.run()
    report = stream.report()
    assert report is not None
    return report
