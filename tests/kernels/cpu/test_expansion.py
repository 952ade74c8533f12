"""Blocks of training: every instruction set against the formula in float64, and when kernels are used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="this kernel is called from torch")

from refusion_edge.errors import UsageError
from refusion_edge.kernels.cpu import expansion, features
from refusion_edge.kernels.cpu.compiled import ISA_VARIABLE
from refusion_edge.kernels.cpu.expansion import Form, composed, expand, gated_feed_forward, gated_sum
from refusion_edge.kernels.cpu.features import suits_kernels
from tests.raising import raises

MODULE: Any = features.compiled_module()
# On first use torch 2.13 loads its own rules of forward mode through torch.jit, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
ISAS = tuple(MODULE.isas()) if MODULE else ()
needs_kernels = pytest.mark.skipif(MODULE is None, reason="the kernels are not built; run: pip install . -Cwheel.cmake=true")
EXPAND, BARE, FEED_FORWARD = Form(1, True, 3), Form(1, False, 2), Form(1, True, 2, True, "input")
GATED_SUM, GATE = Form(2, False, 2, True, "own"), Form(1, False, 2, True)
FORMS = [EXPAND, BARE, FEED_FORWARD, GATED_SUM, GATE]
# Images smaller than the taps, more rows than a band. Channels of the inputs, of each operand, and of what is made of them:
# whole vectors, narrower ones, single lanes.
SIZES = [(1, 1, 1), (2, 1, 9), (1, 7, 1), (1, 131, 3), (3, 6, 4)]
CHANNELS = [(16, 32, 16), (48, 16, 32), (8, 24, 8), (7, 5, 3)]
SMALL = (2, 4, 5), (4, 6, 4)
Tensors = tuple[torch.Tensor, ...]


def draw(form: Form, size: tuple[int, ...], channels: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensors:
    """Points of a form; of two inputs the second has one channel group less where that leaves some."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator)
    narrow, wide, out = channels[0], channels[1], channels[0] if form.residual == "input" else channels[2]
    widths = (narrow, max(narrow // 2, 1))[: form.inputs]
    rows = wide * form.operands // form.inputs
    points = [scale * normal(*size, width) for width in widths]
    points += [1 + 0.5 * normal(narrow), normal(narrow)] if form.norm else []
    points += [normal(rows, width, 1, 1) / width**0.5 for width in widths]
    points += [normal(rows, 1, 3, 3) / 3 for _ in widths]
    points += [normal(out, wide, 1, 1) / wide**0.5] if form.gated else []
    points += [normal(*size, out)] if form.residual == "own" else []
    return tuple(points)


def draw_slopes(form: Form, size: tuple[int, ...], channels: tuple[int, ...], seed: int = 2) -> Tensors:
    count = channels[1] if not form.gated else channels[0] if form.residual == "input" else channels[2]
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*size, count, generator=generator) for _ in range(form.results))


def wide(tensors: Tensors) -> Tensors:
    return tuple(tensor.double() for tensor in tensors)


def gradient(function: Any, points: Tensors, slopes: Tensors) -> Tensors:
    return torch.func.vjp(function, *points)[1](slopes)


def assert_close(found: Tensors, expected: Tensors, tolerance: float = 2e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


def computed(form: Form) -> Any:
    return partial(expansion._apply, form)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(features, "training_isa", lambda: request.param)
    return request.param


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is looked up once is looked up again, before and after."""
    for lookup in (features.training_isa, features.compiled_module):
        lookup.cache_clear()
    yield
    for lookup in (features.training_isa, features.compiled_module):
        lookup.cache_clear()


@needs_kernels
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_instruction_set_agrees_with_double_precision(form: Form, channels: tuple[int, ...]) -> None:
    for size in SIZES:
        points, along = draw(form, size, channels), draw(form, size, channels, seed=1)
        slopes = draw_slopes(form, size, channels)
        assert suits_kernels(*points)
        found, formula = computed(form), partial(composed, form)
        assert_close(found(*points), formula(*wide(points)))
        assert_close(gradient(found, points, slopes), gradient(formula, wide(points), wide(slopes)), 5e-6)
        assert_close(torch.func.jvp(found, points, along)[1], torch.func.jvp(formula, wide(points), wide(along))[1], 5e-6)


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_those_of_the_formula(form: Form) -> None:
    points, along, slopes = draw(form, *SMALL), draw(form, *SMALL, seed=1), draw_slopes(form, *SMALL)

    def forward_over_reverse(function: Any, cast: Any) -> Tensors:
        return torch.func.jvp(lambda *at: gradient(function, at, cast(slopes)), cast(points), cast(along))[1]

    def reverse_over_reverse(function: Any, cast: Any) -> Tensors:
        leaves = tuple(point.clone().requires_grad_() for point in cast(points))
        first = torch.autograd.grad(function(*leaves), leaves, cast(slopes), create_graph=True)
        # What is linear in a point has no second derivative by it.
        total = sum((one * other).sum() for one, other in zip(first, cast(along), strict=True))
        return torch.autograd.grad(total, leaves, materialize_grads=True)

    def reverse_over_forward(function: Any, cast: Any) -> Tensors:
        return torch.func.vjp(lambda *at: torch.func.jvp(function, at, cast(along))[1], *cast(points))[1](cast(slopes))

    for derivative in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        assert_close(derivative(computed(form), tuple), derivative(partial(composed, form), wide), 1e-5)


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_equal_central_differences(form: Form) -> None:
    step, size, channels = 1e-5, (1, 5, 4), (16, 16, 16)
    points, along, slopes = draw(form, size, channels), draw(form, size, channels, seed=1), draw_slopes(form, size, channels)

    def moved(by: float) -> Tensors:
        return tuple(point.double() + by * direction.double() for point, direction in zip(points, along, strict=True))

    pairs = zip(composed(form, *moved(step)), composed(form, *moved(-step)), strict=True)
    expected = tuple((above - below) / (2 * step) for above, below in pairs)
    found = torch.func.jvp(computed(form), points, along)[1]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    by_gradient = sum(
        (one.double() * other).sum().item() for one, other in zip(gradient(computed(form), points, slopes), along, strict=True)
    )
    by_difference = sum((one * other).sum().item() for one, other in zip(expected, slopes, strict=True))
    assert by_gradient == pytest.approx(by_difference, rel=1e-5)


@needs_kernels
@pytest.mark.usefixtures("isa")
def test_large_activations_are_gated_by_nothing_or_all() -> None:
    points = draw(GATE, (1, 6, 7), (16, 16, 16), scale=1e6)
    slopes = draw_slopes(GATE, (1, 6, 7), (16, 16, 16))
    found = (*computed(GATE)(*points), *gradient(computed(GATE), points, slopes))
    formula = partial(composed, GATE)
    for one, other in zip(found, (*formula(*wide(points)), *gradient(formula, wide(points), wide(slopes))), strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 5e-6 * other.abs().max()


@needs_kernels
@pytest.mark.usefixtures("isa")
def test_a_image_without_contrast_is_normalized() -> None:
    points = draw(EXPAND, (1, 4, 5), (16, 16, 16))
    flat = (torch.full_like(points[0], 0.7), *points[1:])
    slopes = draw_slopes(EXPAND, (1, 4, 5), (16, 16, 16))
    for one in (*computed(EXPAND)(*flat), *gradient(computed(EXPAND), flat, slopes)):
        assert torch.isfinite(one).all()
    # What rounding leaves of the contrast is divided by the root of the epsilon.
    assert_close(computed(EXPAND)(*flat), composed(EXPAND, *wide(flat)), 1e-4)


@needs_kernels
def test_a_part_without_a_use_has_a_slope_of_zero() -> None:
    leaves = tuple(point.requires_grad_() for point in draw(BARE, (1, 4, 4), (8, 8, 8)))
    first, _ = computed(BARE)(*leaves)
    by_weights = torch.autograd.grad(first.sum(), leaves)[1]
    assert by_weights[:8].any()
    assert not by_weights[8:].any()


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_any_strides_are_taken(form: Form) -> None:
    size, channels = (2, 5, 6), (16, 16, 16)
    points = draw(form, size, channels)
    slopes = tuple(torch.ones(()).expand(tensor.shape) for tensor in draw_slopes(form, size, channels))
    expected = (*computed(form)(*points), *gradient(computed(form), points, tuple(slope.contiguous() for slope in slopes)))

    def planes(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    def slices(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor, tensor), dim=-1)[..., : tensor.shape[-1]]

    def columns(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor, tensor), dim=2)[:, :, :6]

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    for laid in (planes, slices, columns):
        others = tuple(laid(point) if point.shape[:3] == size else turned(point) for point in points)
        assert not others[0].is_contiguous()
        found = (*computed(form)(*others), *gradient(computed(form), others, slopes))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_are_the_same_every_time_and_for_any_number_of_threads(form: Form) -> None:
    size, channels = (3, 150, 4), (16, 16, 16)
    points, slopes = draw(form, size, channels), draw_slopes(form, size, channels)

    def everything() -> Tensors:
        found = computed(form)
        return (*found(*points), *gradient(found, points, slopes), *torch.func.jvp(found, points, points)[1])

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = everything()
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert all(torch.equal(*pair) for pair in zip(everything(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_only_what_was_asked_for_is_written(form: Form) -> None:
    size, channels = (2, 5, 6), (16, 16, 16)
    points, options = draw(form, size, channels), expansion._options(form)

    def framed(counts: list[int]) -> tuple[list[torch.Tensor], list[Any]]:
        frames = [torch.full((4, 5, 6, count + 4), float("nan")) for count in counts]
        return frames, [frame[1:3, :, :, 2:-2].numpy() for frame in frames]

    def assert_filled(frames: list[torch.Tensor]) -> None:
        for frame in frames:
            inside = frame[1:3, :, :, 2:-2]
            assert not inside.isnan().any()
            assert frame.isnan().sum() == frame.numel() - inside.numel()

    given = expansion._lists(form, points)
    frames, y = framed([16] * form.results)
    MODULE.expand(given, y, **options)
    assert_filled(frames)
    frames, y = framed([16] * form.results)
    MODULE.expand_tangent(given, given, y, **options)
    assert_filled(frames)
    gradients = [torch.full_like(point, float("nan")) for point in points]
    frames, by_inputs = framed([point.shape[-1] for point in points[: form.inputs]])
    MODULE.expand_gradient(given, y, (by_inputs, *expansion._lists(form, gradients)[1:]), **options)
    assert_filled(frames)
    parameters = gradients[form.inputs : -1] if form.residual == "own" else gradients[form.inputs :]
    assert not any(tensor.isnan().any() for tensor in parameters)


@needs_kernels
def test_arrays_that_do_not_fit_are_refused() -> None:
    points = draw(BARE, (1, 4, 5), (8, 8, 8))
    fitting = expansion._lists(BARE, points)
    y = [np.empty((1, 4, 5, 8), np.float32) for _ in range(2)]

    def refused(match: str, kind: int | None = None, arrays: Any = None, results: Any = None, **options: Any) -> None:
        lists = [arrays if kind == number else own for number, own in enumerate(fitting)]
        with pytest.raises(ValueError, match=match):
            MODULE.expand(tuple(lists), y if results is None else results, **options)

    (x,) = fitting[0]
    refused("size", results=[one[:, :3] for one in y])
    refused("weights", results=[one[..., :4] for one in y])
    refused("results", results=y[:1])
    refused("results", gated=True)
    refused("distance", 0, [np.ascontiguousarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)])
    refused("parameters", 2, [own[:, :4] for own in fitting[2]])
    refused("parameters", 3, [own[:4] for own in fitting[3]])
    refused("operand", 0, [x, x, x])
    refused("norm", 1, [np.ones(8, np.float32)])
    refused("gated", 4, [fitting[2][0]])
    refused("residual", residual_is_input=True)
    refused("'d'", 0, [x.astype("f8")])
    refused("aligned", 0, [np.frombuffer(bytes(x.nbytes + 1), "f4", offset=1).reshape(x.shape)])
    refused("empty", 0, [x[:0]])
    refused("'mmx'", isa="mmx")


@needs_kernels
@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("name", ["mmx", "avx512_bf16"])
def test_an_instruction_set_that_cannot_be_used_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, name)
    with raises(UsageError, ISA_VARIABLE, expected=tuple(MODULE.isas()), got=name):
        computed(BARE)(*draw(BARE, *SMALL))


@needs_kernels
@pytest.mark.parametrize("form", FORMS)
def test_the_default_type_of_torch_makes_no_difference(form: Form) -> None:
    points, slopes = draw(form, *SMALL), draw_slopes(form, *SMALL)

    def everything() -> Tensors:
        found = computed(form)
        return (*found(*points), *gradient(found, points, slopes), *torch.func.jvp(found, points, points)[1])

    expected = everything()
    torch.set_default_dtype(torch.float64)
    try:
        found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_elsewhere_the_formula_is_used(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    points = draw(form, *SMALL)
    assert not suits_kernels(*wide(points))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits_kernels(*points)
        assert all(torch.isfinite(y).all() for y in computed(form)(*points))
    expected = composed(form, *wide(points))
    assert all(torch.equal(*pair) for pair in zip(computed(form)(*wide(points)), expected, strict=True))
    monkeypatch.setattr(features, "compiled_module", lambda: None)
    assert not suits_kernels(*points)
    assert_close(computed(form)(*points), expected, 1e-5)


def test_a_norm_of_more_channels_than_the_kernels_hold_is_composed() -> None:
    form = Form(1, True, 1)
    points = draw(form, (1, 2, 3), (272, 16, 16))
    assert_close(computed(form)(*points), composed(form, *wide(points)))


@pytest.mark.usefixtures("forgetful")
def test_a_module_that_is_not_built_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError

    monkeypatch.setattr(features, "load_module", absent)
    assert features.compiled_module() is None


def test_the_blocks_are_what_their_formulas_say() -> None:
    generator = torch.Generator().manual_seed(3)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    x, other = normal(2, 5, 6, 4), normal(2, 5, 6, 3)
    norm, out = (normal(4), normal(4)), normal(4, 7, 1, 1)

    def spread(features: torch.Tensor, weight: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        planes = torch.nn.functional.conv2d(features.permute(0, 3, 1, 2), weight)
        return torch.nn.functional.conv2d(planes, taps, padding=1, groups=taps.shape[0])

    def gated(gate: torch.Tensor, update: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        passed = torch.nn.functional.gelu(gate) * update
        return torch.nn.functional.conv2d(passed, out).permute(0, 2, 3, 1) + residual

    normalized = torch.nn.functional.layer_norm(x, (4,), *norm, 1e-5)
    weight, taps = normal(14, 4, 1, 1), normal(14, 1, 3, 3)
    parts = expand(x, norm, weight, taps, 2)
    assert torch.allclose(torch.cat(parts, dim=-1), spread(normalized, weight, taps).permute(0, 2, 3, 1))
    assert torch.allclose(torch.cat(expand(x, None, weight, taps, 2), dim=-1), spread(x, weight, taps).permute(0, 2, 3, 1))
    expected = gated(*spread(normalized, weight, taps).chunk(2, dim=1), x)
    assert torch.allclose(gated_feed_forward(x, norm, weight, taps, out), expected)
    weights, residual = (normal(7, 4, 1, 1), normal(7, 3, 1, 1)), normal(2, 5, 6, 4)
    own_taps = normal(7, 1, 3, 3), normal(7, 1, 3, 3)
    expected = gated(spread(x, weights[0], own_taps[0]), spread(other, weights[1], own_taps[1]), residual)
    assert torch.allclose(gated_sum((x, other), weights, own_taps, out, residual), expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_formula_passes_finite_differences(form: Form) -> None:
    points = tuple(point.double().requires_grad_() for point in draw(form, (1, 3, 2), (2, 2, 2)))
    assert torch.autograd.gradcheck(computed(form), points)
    assert torch.autograd.gradgradcheck(computed(form), points)
