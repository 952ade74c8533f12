"""The fields of an error, and the message that is made from them."""

from __future__ import annotations

import pickle

import pytest

from refusion_edge import errors

EVERY_CLASS = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.RefusionError)]


@pytest.mark.parametrize("kind", EVERY_CLASS)
def test_fields_survive_a_process_boundary(kind: type[errors.RefusionError]) -> None:
    made = kind("the image is 8x8", "give one of at least 16x16", expected=16, got=8)
    for error in (made, pickle.loads(pickle.dumps(made))):
        assert type(error) is kind
        assert str(error) == "the image is 8x8; give one of at least 16x16"
        assert (error.problem, error.remedy) == ("the image is 8x8", "give one of at least 16x16")
        assert (error.expected, error.got) == (16, 8)
        assert error.exit_code in range(1, 6)


def test_a_problem_that_says_it_all_needs_no_remedy() -> None:
    assert str(errors.InputError("the image is empty")) == "the image is empty"


def test_context_goes_in_front_of_the_problem_and_keeps_the_other_fields() -> None:
    error = errors.ShapeError("the image is 8x8", "scale it up", expected=(16, 16), got=(8, 8)).within("pair 01")
    assert type(error) is errors.ShapeError
    assert (error.problem, error.remedy) == ("pair 01: the image is 8x8", "scale it up")
    assert (error.expected, error.got) == ((16, 16), (8, 8))


def test_control_characters_of_names_are_escaped_in_fields_and_message() -> None:
    error = errors.InputError("a\x1b[2J\n.png is damaged", "delete a\udcff")
    assert (error.problem, error.remedy) == (r"a\x1b[2J\n.png is damaged", r"delete a\udcff")
    assert str(error).isprintable()
