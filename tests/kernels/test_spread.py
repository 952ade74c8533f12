"""Depthwise convolutions of training: every instruction set against the formula in float64, and when kernels are used."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="this kernel is called from torch")

from refusion_edge.errors import UsageError
from refusion_edge.kernels import spread
from refusion_edge.kernels.compiled import ISA_VARIABLE
from refusion_edge.kernels.spread import composed, depthwise_parts, gated_depthwise, suits_kernels

try:
    MODULE: Any = spread.load_module()
except ImportError:
    MODULE = None
# On first use torch 2.13 loads its own rules of forward mode through torch.jit, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
ISAS = tuple(MODULE.isas()) if MODULE else ()
needs_kernels = pytest.mark.skipif(MODULE is None, reason="the kernels are not built; run: pip install . -Cwheel.cmake=true")
# Pictures smaller than the taps, more rows than a band; channels for whole vectors, for narrower ones, and for single lanes.
SHAPES = [(1, 1, 1, 1), (2, 1, 9, 5), (1, 7, 1, 8), (2, 3, 5, 64), (1, 131, 3, 37), (3, 6, 4, 16)]
INPUTS = [1, 2]
Tensors = tuple[torch.Tensor, ...]


def draw(inputs: int, shape: tuple[int, ...], seed: int = 0, scale: float = 1.5) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    features = tuple(scale * torch.randn(shape, generator=generator) for _ in range(inputs))
    return features + tuple(torch.randn(shape[3], 1, 3, 3, generator=generator) for _ in range(inputs))


def wide(tensors: Tensors) -> Tensors:
    return tuple(tensor.double() for tensor in tensors)


def gradient(form: Any, points: Tensors, slopes: Tensors) -> Tensors:
    return torch.func.vjp(form, *points)[1](slopes)


def assert_close(found: Tensors, expected: Tensors, tolerance: float = 3e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(spread, "_isa", lambda: request.param)
    return request.param


@needs_kernels
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_instruction_set_agrees_with_double_precision(shape: tuple[int, ...], inputs: int) -> None:
    points, along = draw(inputs, shape), draw(inputs, shape, seed=1)
    slopes = draw(1, shape, seed=2)[:1]
    assert suits_kernels(*points)
    found, formula = partial(spread._spread, 1), partial(composed, 1)
    assert_close(found(*points), formula(*wide(points)))
    assert_close(gradient(found, points, slopes), gradient(formula, wide(points), wide(slopes)))
    assert_close(torch.func.jvp(found, points, along)[1], torch.func.jvp(formula, wide(points), wide(along))[1])


@needs_kernels
@pytest.mark.parametrize("inputs", INPUTS)
def test_second_derivatives_are_those_of_the_formula(inputs: int) -> None:
    shape = (2, 4, 5, 6)
    points, along = draw(inputs, shape), draw(inputs, shape, seed=1)
    slopes = draw(1, shape, seed=2)[:1]

    def forward_over_reverse(form: Any, cast: Any) -> Tensors:
        return torch.func.jvp(lambda *at: gradient(form, at, cast(slopes)), cast(points), cast(along))[1]

    def reverse_over_reverse(form: Any, cast: Any) -> Tensors:
        leaves = tuple(point.clone().requires_grad_() for point in cast(points))
        first = torch.autograd.grad(form(*leaves), leaves, cast(slopes), create_graph=True)
        return torch.autograd.grad(sum((one * other).sum() for one, other in zip(first, cast(along), strict=True)), leaves)

    def reverse_over_forward(form: Any, cast: Any) -> Tensors:
        return torch.func.vjp(lambda *at: torch.func.jvp(form, at, cast(along))[1], *cast(points))[1](cast(slopes))

    for derivative in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        expected = derivative(partial(composed, 1), wide)
        assert_close(derivative(partial(spread._spread, 1), tuple), expected, 5e-6)


@needs_kernels
@pytest.mark.parametrize("inputs", INPUTS)
def test_derivatives_equal_central_differences(inputs: int) -> None:
    shape, step = (1, 5, 4, 17), 1e-5
    points, along = draw(inputs, shape), draw(inputs, shape, seed=1)
    slopes = draw(1, shape, seed=2)[:1]

    def moved(by: float) -> Tensors:
        return tuple(point.double() + by * direction.double() for point, direction in zip(points, along, strict=True))

    (above,), (below,) = composed(1, *moved(step)), composed(1, *moved(-step))
    expected = (above - below) / (2 * step)
    form = partial(spread._spread, 1)
    (found,) = torch.func.jvp(form, points, along)[1]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    product = sum((one.double() * other).sum() for one, other in zip(gradient(form, points, slopes), along, strict=True))
    assert product.item() == pytest.approx((expected * slopes[0]).sum().item(), rel=1e-5)


@needs_kernels
@pytest.mark.usefixtures("isa")
def test_large_activations_are_gated_by_nothing_or_all() -> None:
    points = draw(2, (1, 6, 7, 19), scale=1e6)
    slopes = draw(1, (1, 6, 7, 19), seed=2)[:1]
    found = gradient(partial(spread._spread, 1), points, slopes)
    expected = gradient(partial(composed, 1), wide(points), wide(slopes))
    for one, other in zip((*spread._spread(1, *points), *found), (*composed(1, *wide(points)), *expected), strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 3e-6 * other.abs().max()


@needs_kernels
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_lie_apart_and_have_the_gradient_of_the_whole(parts: int) -> None:
    x, taps = draw(1, (2, 5, 6, 12))
    slopes = tuple(draw(1, (2, 5, 6, 12), seed=2)[0].chunk(parts, dim=-1))
    found = depthwise_parts(x, taps, parts)
    assert all(part.is_contiguous() for part in found)
    assert_close(found, composed(parts, x.double(), taps.double()))
    expected = gradient(partial(composed, parts), wide((x, taps)), wide(slopes))
    assert_close(gradient(lambda *at: depthwise_parts(*at, parts), (x, taps), slopes), expected)


@needs_kernels
def test_a_part_without_a_use_has_a_slope_of_zero() -> None:
    x, taps = draw(1, (1, 4, 4, 8))
    leaf = x.clone().requires_grad_()
    (by_first,) = torch.autograd.grad(depthwise_parts(leaf, taps, 2)[0].sum(), leaf)
    assert by_first[..., :4].any()
    assert not by_first[..., 4:].any()


@needs_kernels
def test_any_strides_are_taken() -> None:
    points = draw(2, (2, 5, 6, 16))
    expected = spread._spread(1, *points)
    slope = torch.ones(()).expand(2, 5, 6, 16)
    expected_gradient = gradient(partial(spread._spread, 1), points, (slope.contiguous(),))

    def planes(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    def slices(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor, tensor), dim=-1)[..., :16]

    def columns(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat((tensor, tensor), dim=2)[:, :, :6]

    for laid in (planes, slices, columns):
        others = (laid(points[0]), laid(points[1]), *(taps.transpose(2, 3).contiguous().transpose(2, 3) for taps in points[2:]))
        assert not any(tensor.is_contiguous() for tensor in others)
        assert all(torch.equal(*pair) for pair in zip(spread._spread(1, *others), expected, strict=True))
        found = gradient(partial(spread._spread, 1), others, (slope,))
        assert all(torch.equal(*pair) for pair in zip(found, expected_gradient, strict=True))


@needs_kernels
def test_the_bits_are_the_same_every_time_and_for_any_number_of_threads() -> None:
    points, slopes = draw(2, (3, 150, 4, 21)), draw(1, (3, 150, 4, 21), seed=2)[:1]
    form = partial(spread._spread, 1)

    def everything() -> Tensors:
        return (*form(*points), *gradient(form, points, slopes), *torch.func.jvp(form, points, points)[1])

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
def test_only_what_was_asked_for_is_written() -> None:
    points = draw(2, (2, 5, 6, 19))
    features, taps = ([tensor.numpy() for tensor in part] for part in (points[:2], points[2:]))
    frames = [torch.full((4, 5, 6, 23), float("nan")) for _ in range(3)]
    inside = [frame[1:3, :, :, 2:21].numpy() for frame in frames]
    taps_gradients = [torch.full((19, 1, 3, 3), float("nan")) for _ in range(2)]
    MODULE.spread(features, taps, inside[0])
    MODULE.spread_gradient(features, taps, inside[0], inside[1:], [tensor.numpy() for tensor in taps_gradients])
    assert not any(tensor.isnan().any() for tensor in taps_gradients)
    for frame in frames:
        assert not frame[1:3, :, :, 2:21].isnan().any()
        assert frame.isnan().sum() == frame.numel() - 2 * 5 * 6 * 19


@needs_kernels
def test_arrays_that_do_not_fit_are_refused() -> None:
    x, taps = (tensor.numpy() for tensor in draw(1, (1, 4, 5, 8)))
    y = x.copy()
    with pytest.raises(ValueError, match="features of one shape"):
        MODULE.spread([x], [taps], y[..., :4])
    with pytest.raises(ValueError, match="pixels at one distance"):
        MODULE.spread([x.transpose(0, 2, 1, 3)[:, :4, :4]], [taps], y[:, :, :4])
    with pytest.raises(ValueError, match="nine for every channel"):
        MODULE.spread([x], [taps[:4]], y)
    with pytest.raises(ValueError, match="one or two inputs"):
        MODULE.spread([x, x], [taps], y)
    with pytest.raises(ValueError, match="format 'f'"):
        MODULE.spread([x.astype("f8")], [taps], y)
    with pytest.raises(ValueError, match="aligned"):
        MODULE.spread([np.frombuffer(bytes(x.nbytes + 1), "f4", offset=1).reshape(x.shape)], [taps], y)
    with pytest.raises(ValueError, match="got 'mmx'"):
        MODULE.spread([x], [taps], y, isa="mmx")


@needs_kernels
@pytest.mark.parametrize("name", ["mmx", "avx512_bf16"])
def test_an_instruction_set_that_cannot_be_used_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, name)
    spread._isa.cache_clear()
    try:
        with pytest.raises(UsageError, match=f"for training, got '{name}'"):
            depthwise_parts(*draw(1, (1, 4, 5, 8)), 1)
    finally:
        spread._isa.cache_clear()


@needs_kernels
def test_the_default_type_of_torch_makes_no_difference() -> None:
    points = draw(2, (1, 4, 5, 8))
    form = partial(spread._spread, 1)
    expected = (*form(*points), *gradient(form, points, points[:1]), *torch.func.jvp(form, points, points)[1])
    torch.set_default_dtype(torch.float64)
    try:
        found = (*form(*points), *gradient(form, points, points[:1]), *torch.func.jvp(form, points, points)[1])
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_elsewhere_the_formula_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, update, gate_taps, update_taps = points = draw(2, (1, 4, 5, 8))
    assert not suits_kernels(*wide(points))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits_kernels(*points)
        assert gated_depthwise(*points).dtype == torch.bfloat16
    (expected,) = composed(1, *wide(points))
    assert torch.equal(gated_depthwise(*wide(points)), expected)
    monkeypatch.setattr(spread, "_module", lambda: None)
    assert not suits_kernels(*points)
    assert (gated_depthwise(gate, update, gate_taps, update_taps) - expected).abs().max() < 1e-5


def test_a_module_that_is_not_built_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError

    monkeypatch.setattr(spread, "load_module", absent)
    spread._module.cache_clear()
    try:
        assert spread._module() is None
    finally:
        spread._module.cache_clear()


def test_the_formula_passes_finite_differences() -> None:
    points = tuple(point.double().requires_grad_() for point in draw(2, (1, 3, 2, 2)))
    assert torch.autograd.gradcheck(gated_depthwise, points)
    assert torch.autograd.gradgradcheck(gated_depthwise, points)
