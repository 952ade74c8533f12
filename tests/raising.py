"""Assert which error is raised by its type and its fields, so that its wording stays free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from refusion_edge.errors import RefusionError
from tests.conftest import one_sentence

_ANY = object()


@contextlib.contextmanager
def raises(
    kind: type[RefusionError],
    *named: object,
    remedy: str | tuple[str, ...] = (),
    expected: object = _ANY,
    got: object = _ANY,
) -> Iterator[pytest.ExceptionInfo[RefusionError]]:
    """Require an error of exactly this type, and one line of message.

    Args:
        kind: The type.
        *named: Values, files or options that the problem must name.
        remedy: What the remedy must name.
        expected: The field of this name; anything if not given.
        got: The field of this name; anything if not given.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind
    assert one_sentence(str(error)), str(error)
    for name in named:
        assert str(name) in error.problem, error.problem
    for name in (remedy,) if isinstance(remedy, str) else remedy:
        assert name in error.remedy, error.remedy
    if expected is not _ANY:
        assert error.expected == expected, error.problem
    if got is not _ANY:
        assert error.got == got, error.problem
