"""Parameters of graph forms: each rewrite computes what the official layout computes, to the last digit of float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import correlate

from refusion_edge.arrays import State
from refusion_edge.errors import UsageError
from refusion_edge.network.forms import FORMS, GraphForm, Pair, find_form, pairs, parameter_shapes, rewrite
from refusion_edge.network.parameters import PARAMETERS
from tests.raising import raises

Planes = NDArray[np.float64]
PAIRS = list(pairs())


def pointwise(x: Planes, weight: Planes) -> Planes:
    return np.einsum("oc,chw->ohw", weight[:, :, 0, 0], x)


def depthwise(x: Planes, weight: Planes) -> Planes:
    return np.stack([correlate(plane, kernel[0], mode="constant") for plane, kernel in zip(x, weight, strict=True)])


def dense(x: Planes, weight: Planes) -> Planes:
    return np.stack([
        sum(correlate(plane, kernel, mode="constant") for plane, kernel in zip(x, kernels, strict=True)) for kernels in weight
    ])  # fmt: skip


def normalised(x: Planes) -> Planes:
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


def official(pair: Pair, state: State, x: Planes) -> Planes:
    if pair.norm is not None:
        scale, shift = state[f"{pair.norm}.weight"], state[f"{pair.norm}.bias"]
        x = normalised(x) * scale[:, None, None] + shift[:, None, None]
    return depthwise(pointwise(x, state[f"{pair.point}.weight"]), state[f"{pair.depth}.weight"])


def rewritten(form: GraphForm, pair: Pair, state: State, x: Planes) -> Planes:
    parameters = rewrite(form, state)
    if pair.norm is not None and form.folded_norm:
        # Only divided: the mean must not matter any more.
        x = x / np.sqrt(x.var(axis=0) + 1e-5)
    elif pair.norm is not None:
        x = normalised(x) * parameters[f"{pair.norm}.weight"][:, None, None] + parameters[f"{pair.norm}.bias"][:, None, None]
    parts = []
    for point, depth in pair.part_names(form):
        weight = parameters[f"{point}.weight"]
        if form.dense:
            parts.append(dense(x, weight))
            continue
        y = pointwise(x, weight) + parameters.get(f"{point}.bias", np.zeros(len(weight)))[:, None, None]
        parts.append(depthwise(y, parameters[f"{depth}.weight"]))
    return np.concatenate(parts)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.point)
@pytest.mark.parametrize("name", FORMS)
def test_pairs_equal_the_official_layout_at_the_border_too(
    random_state: State, rng: np.random.Generator, name: str, pair: Pair
) -> None:
    channels = PARAMETERS[f"{pair.point}.weight"][1]
    # Far from zero, so that a mean or a shift that leaks over the border is seen.
    x = rng.standard_normal((channels, 5, 7)) * 3 + rng.standard_normal((channels, 1, 1)) + 10
    expected = official(pair, random_state, x)
    assert np.abs(rewritten(FORMS[name], pair, random_state, x) - expected).max() <= 1e-12 * np.abs(expected).max() + 1e-11


def test_the_pairs_cover_every_depthwise_convolution_of_the_network() -> None:
    one_channel = {name.removesuffix(".weight") for name, shape in PARAMETERS.items() if shape[1:] == (1, 3, 3)}
    assert {pair.depth for pair in PAIRS} == one_channel - {"project_in_1", "project_in_2"}
    assert len(PAIRS) == 17


@pytest.mark.parametrize("name", FORMS)
def test_no_parameter_is_lost_or_invented(random_state: State, name: str) -> None:
    """Whatever a form computes depends on every official parameter, and a parameter that it keeps is bit-equal."""
    form = FORMS[name]
    before = rewrite(form, random_state)
    assert {name: array.shape for name, array in before.items()} == parameter_shapes(form)
    for changed in PARAMETERS:
        if changed in before and before[changed].shape == PARAMETERS[changed]:
            untouched = np.array_equal(before[changed], random_state[changed].astype(np.float64))
            assert untouched or form.folded_norm
        after = rewrite(form, {**random_state, changed: random_state[changed] * 2})
        assert any(not np.array_equal(before[key], after[key]) for key in before), changed


def test_forms_that_would_leak_over_the_border_are_refused() -> None:
    with pytest.raises(ValueError, match="folded_norm.* dense"):
        GraphForm(dense=True, folded_norm=True)


def test_unknown_forms_are_refused_in_words() -> None:
    with raises(UsageError, got="curved"):
        find_form("curved")
    with raises(UsageError, r"\x1b[2J\n", got="\x1b[2J\n"):
        find_form("\x1b[2J\n")
