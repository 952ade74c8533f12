"""Reading two sources side by side for some time, without pairing or fusion."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, SourceLostError, StreamError
from refusion_edge.stream.frames import SECOND, Side
from refusion_edge.stream.sources.source import CorruptFrameError, Source

_MARGIN_S = 20.0

Take = Callable[[Side, Array, int], None]


def watch(sources: tuple[Source, Source], seconds: float, take: Take) -> None:
    """Read two sources, each in its own thread.

    Args:
        sources: The two cameras or files, not entered yet.
        seconds: How long to read: elapsed time for cameras, time stamps for files.
        take: Called with the side, the image and its time, from the thread of its source.

    Raises:
        RefusionError: A source cannot be read; both are closed by then.
    """
    stop, failures = threading.Event(), list[BaseException]()
    with contextlib.ExitStack() as stack:
        for source in sources:
            stack.enter_context(source)

        def guarded(source: Source) -> None:
            try:
                _read(source, seconds, stop, take)
            except BaseException as error:  # any error is passed to the main thread
                failures.append(error)
                stop.set()

        threads = [
            threading.Thread(target=guarded, args=(source,), name=f"watch {source.side}", daemon=True) for source in sources
        ]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + seconds + _MARGIN_S if any(source.live for source in sources) else None
        try:
            for thread in threads:
                thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
        finally:
            stop.set()
    if failures:
        raise failures[0]
    silent = [source.uri for source, thread in zip(sources, threads, strict=True) if thread.is_alive()]
    if silent:
        raise StreamError(
            f"{silent[0]} stopped sending frames before {seconds:g} s had passed", "check the camera and its cable"
        )


def _read(source: Source, seconds: float, stop: threading.Event, take: Take) -> None:
    started_s, first_ns, count = time.monotonic(), None, 0
    damage: CorruptFrameError | None = None
    while not stop.is_set():
        try:
            grab = source.read()
        except CorruptFrameError as error:
            damage = damage or error
            continue
        if grab is None:
            break
        first_ns = grab.time_ns if first_ns is None else first_ns
        passed_s = time.monotonic() - started_s if source.live else (grab.time_ns - first_ns) / SECOND
        if passed_s > seconds:
            break
        take(source.side, grab.image, grab.time_ns)
        count += 1
    if count == 0 and damage is not None and not source.live:
        raise InputError(damage.problem, damage.remedy)
    if count == 0 and not stop.is_set():
        raise SourceLostError(f"{source.uri} sent no frames", "check the source")
