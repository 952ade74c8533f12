"""Taking one pair from two sources: two frames of one moment, with every bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from refusion_edge.errors import InputError, SourceLostError, UsageError
from refusion_edge.stream.frames import MS, SECOND, Frame, Pair
from refusion_edge.stream.pairing.failover import Failover
from refusion_edge.stream.pairing.pairer import Pairer
from refusion_edge.stream.run.channel import Inbox
from refusion_edge.stream.run.reader import Reader
from refusion_edge.stream.sources.registry import open_pair
from refusion_edge.stream.sources.source import Source
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import parse_source

# A pair nearer than this is as good as any.
_GOOD_SKEW_NS = 3 * MS
# How long to look for a nearer one.
_LOOK_NS = SECOND


def take_pair(
    ir: str,
    vis: str,
    *,
    offset_ms: float = 0.0,
    settle_s: float = 1.0,
    timeout_s: float = 20.0,
    best_effort: bool = False,
    remark: Callable[[str], object] = lambda _text: None,
) -> Pair:
    """Take two frames of one moment.

    Args:
        ir: URI of the infrared source.
        vis: URI of the visible source.
        offset_ms: Added to the time stamps of ir to match those of vis.
        settle_s: Time that cameras get to set their exposure, and that their clocks are watched.
        timeout_s: Time after which no pair is an error.
        best_effort: Whether cameras that do not grant what is asked of them are used in their nearest mode.
        remark: Called with what was guessed, repaired or not granted, in words.

    Returns:
        The pair with the least time between its frames, of those of one second.

    Raises:
        UsageError: A URI cannot be used, or only one of the two is a camera.
        SourceLostError: A camera cannot be read, or there was no pair in time.
        InputError: A file cannot be read.
    """
    sources = open_pair(parse_source(ir), parse_source(vis), best_effort=best_effort)
    live = sources[0].live
    if sources[1].live != live:
        raise UsageError("the clocks of a camera and a file are unrelated", "give two cameras or two files")
    statistics, stop, failures = Statistics(), threading.Event(), list[BaseException]()
    failover = Failover(Pairer(), None, offset_ns=round(offset_ms * MS))
    inbox = Inbox(live=live, offset_ns=failover.offset_ns)

    def read(reader: Reader) -> None:
        try:
            reader.run()
        except BaseException as error:  # any error is passed to the main thread
            failures.append(error)
            inbox.close()

    readers = [Reader(source, inbox, statistics, stop) for source in sources]
    threads = [threading.Thread(target=read, args=(reader,), daemon=True) for reader in readers]
    watchdog = threading.Timer(timeout_s, inbox.close)
    watchdog.daemon = True
    try:
        for source in sources:
            source.__enter__()
        for thread in (*threads, watchdog):
            thread.start()
        best = _nearest(inbox, failover, settle_s if live else 0.0)
    finally:
        stop.set()
        watchdog.cancel()
        inbox.close()
        _leave(sources, threads)
    if best is None:
        failures += [reader.failure for reader in readers if reader.failure is not None]
        if failures:
            raise failures[0]
        counts = " and ".join(f"{statistics.cameras[source.side].frames_in} of {source.uri}" for source in sources)
        raise SourceLostError(
            f"there was no pair of frames within {timeout_s:g} s ({counts} came)",
            "check both sources, or give the offset of their clocks by --offset-ms",
        )
    for event in statistics.snapshot()["events"]:
        remark(f"{event['where']}: {event['what']}")
    for frame in (best.ir, best.vis):
        if frame is not None:
            _check_values(frame, remark)
    return best


def _check_values(frame: Frame, remark: Callable[[str], object]) -> None:
    image = frame.image
    known = image[np.isfinite(image)] if image.dtype.kind == "f" else image
    if not known.size:
        raise InputError(f"no pixel of the {frame.side} image has a value", "check the camera, or how the file was made")
    if known.min() == known.max():
        remark(f"{frame.side}: every pixel has the same value, {known.flat[0]:g}; check the camera")


def _leave(sources: Sequence[Source], threads: Sequence[threading.Thread]) -> None:
    """Close the sources; a reader that still waits for its camera leaves it itself, when the wait is over."""
    for source, thread in zip(sources, threads, strict=True):
        if thread.ident is not None:
            thread.join(_LOOK_NS / SECOND)
        if not thread.is_alive():
            source.__exit__(None, None, None)


def _nearest(inbox: Inbox, failover: Failover, settle_s: float) -> Pair | None:
    """The pair with the least skew among those of a second, after the sources have settled; None if there is none."""
    begin_ns = time.monotonic_ns() + round(settle_s * SECOND)
    best, first_ns = None, 0

    def decide(pairs: tuple[Pair, ...]) -> bool:
        nonlocal best, first_ns
        for pair in pairs:
            if pair.skew_ns is None or time.monotonic_ns() < begin_ns:
                continue
            if best is None:
                first_ns = pair.newest.time_ns
            if best is None or abs(pair.skew_ns) < abs(best.skew_ns or 0):
                best = pair
            if abs(pair.skew_ns) <= _GOOD_SKEW_NS or pair.newest.time_ns - first_ns > _LOOK_NS:
                return True
        return False

    frame: Frame | None
    while (frame := inbox.get()) is not None:
        if decide(failover.push(frame).pairs):
            return best
    decide(failover.flush().pairs)
    return best
