"""An engine that fails in a running stream is reopened; if it keeps failing, the stream ends."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from typing_extensions import Self

from refusion_edge.arrays import Array, Float32Array, Float64Array, Uint8Array
from refusion_edge.backends.registry import AdaptedBackend, Backend, Uint8InputBackend, Uint8OutputBackend
from refusion_edge.documents import brief
from refusion_edge.errors import InputError, RefusionError, StreamError, UsageError

Result = TypeVar("Result")

# An engine that fails more often than this needs attention.
MOST_REOPENED, WITHIN_S = 10, 60.0


class WrappedBackend:
    """An engine behind another object, which can do what the engine can."""

    _backend: Backend

    @property
    def adapts(self) -> bool:
        """See ``AdaptedBackend``."""
        return isinstance(self._backend, AdaptedBackend) and self._backend.adapts

    @property
    def takes_uint8(self) -> bool:
        """See ``Uint8InputBackend``."""
        return isinstance(self._backend, Uint8InputBackend) and self._backend.takes_uint8

    @property
    def uint8_range(self) -> str | None:
        """See ``Uint8OutputBackend``."""
        return self._backend.uint8_range if isinstance(self._backend, Uint8OutputBackend) else None


class RecoveringBackend(WrappedBackend):
    """A back end that reopens its engine when it fails, and then fuses the same planes again.

    Implements ``AdaptedBackend``, ``Uint8InputBackend`` and ``Uint8OutputBackend`` as far as the engine does. The result of an
    engine depends only on its inputs, so the frames are the same as without the failure.

    Args:
        backend: The engine to begin with.
        reopen: Opens it again.
        reopened: Called with a description each time the engine was reopened.
    """

    def __init__(self, backend: Backend, reopen: Callable[[], Backend], reopened: Callable[[str], object]) -> None:
        self._backend, self._reopen, self._reopened = backend, reopen, reopened
        self.name = backend.name
        self._failure: Exception | None = None  # of an engine that is closed for it and not open again
        self._failures_s: deque[float] = deque(maxlen=MOST_REOPENED)

    def __enter__(self) -> Self:
        self._backend.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._failure is None:
            self._backend.__exit__(*exc)

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """See ``Backend``.

        Raises:
            StreamError: The engine failed again, or too often, or could not be reopened.
        """
        return self._run(lambda engine: engine.fuse(a, b))

    def fuse_uint8(self, a: Array, b: Array) -> Uint8Array:
        """See ``Uint8OutputBackend``; raises as ``fuse``."""
        return self._run(lambda engine: engine.fuse_uint8(a, b))  # type: ignore[attr-defined]

    def statistics(self, a: Float32Array, b: Float32Array) -> Float64Array:
        """See ``AdaptedBackend``; raises as ``fuse``."""
        return self._run(lambda engine: engine.statistics(a, b))  # type: ignore[attr-defined]

    def fuse_adapted(self, a: Float32Array, b: Float32Array, figures: Float64Array) -> Float32Array:
        """See ``AdaptedBackend``; raises as ``fuse``."""
        return self._run(lambda engine: engine.fuse_adapted(a, b, figures))  # type: ignore[attr-defined]

    def _run(self, call: Callable[[Backend], Result]) -> Result:
        if self._failure is not None:
            self._open_again(self._failure)
        try:
            return call(self._backend)
        except (InputError, UsageError):
            raise  # what it was given is wrong, not the engine
        except Exception as error:
            self._open_again(error)
        try:
            return call(self._backend)
        except Exception as error:
            raise self._hopeless(f"failed again as soon as it was reopened ({_words(error)})") from error

    def _open_again(self, failure: Exception) -> None:
        now_s = time.monotonic()
        if len(self._failures_s) == MOST_REOPENED and now_s - self._failures_s[0] < WITHIN_S:
            raise self._hopeless(f"failed more than {MOST_REOPENED} times in {WITHIN_S:g} s ({_words(failure)})") from failure
        self._failures_s.append(now_s)
        if self._failure is None:
            self._failure = failure
            # On a device that is lost, closing fails as well.
            with contextlib.suppress(Exception):
                self._backend.__exit__(None, None, None)
        try:
            backend = self._reopen()
            backend.__enter__()
        except RefusionError as error:
            raise self._hopeless(f"failed ({_words(failure)}) and cannot be reopened: {error.problem}") from error
        self._backend, self._failure = backend, None
        self._reopened(f"the engine failed ({_words(failure)}) and was reopened")

    def _hopeless(self, how: str) -> StreamError:
        return StreamError(f"the engine on {self.name} {how}", "run 'refusion-edge selftest' to find out why")


def _words(error: Exception) -> str:
    return error.problem if isinstance(error, RefusionError) else brief(error)
