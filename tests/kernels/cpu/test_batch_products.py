"""Products over the pixels of a batch: every instruction set against float64, and derivatives of any order."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="this kernel is called from torch")

from refusion_edge.kernels.cpu import batch_products, features
from refusion_edge.kernels.cpu.batch_products import dot_products, inner_products, multiply

MODULE: Any = features.compiled_module()
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
ISAS = tuple(MODULE.isas()) if MODULE else ()
needs_kernels = pytest.mark.skipif(MODULE is None, reason="the kernels are not built; run: pip install . -Cwheel.cmake=true")
# Pixels fewer than a register block, and more than a band; channels for whole vectors, for narrower ones, and for single lanes.
SHAPES = [(1, 1, 1, 1), (2, 5, 16, 16), (1, 4099, 16, 32), (3, 300, 7, 24), (2, 513, 48, 5)]
FUNCTIONS = [multiply, inner_products, dot_products]
Tensors = tuple[torch.Tensor, ...]


def draw(function: Any, shape: tuple[int, ...], seed: int = 0) -> Tensors:
    pictures, pixels, inputs, outputs = shape
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    x, y = normal(pictures, pixels, inputs), normal(pictures, pixels, outputs)
    if function is multiply:
        return x, normal(pictures, outputs, inputs) / inputs**0.5, y, normal(pictures, outputs)
    return (x, y) if function is inner_products else (x, normal(pictures, pixels, inputs))


def formula(function: Any, *points: torch.Tensor) -> torch.Tensor:
    if function is multiply:
        x, weights, added, factors = points
        return torch.einsum("bli,boi->blo", x, weights) + added * factors[:, None]
    return torch.einsum("blr,blc->brc" if function is inner_products else "blr,blr->br", *points)


def wide(tensors: Tensors) -> Tensors:
    return tuple(tensor.double() for tensor in tensors)


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(features, "training_isa", lambda: request.param)
    return request.param


@needs_kernels
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_instruction_set_agrees_with_double_precision(function: Any, shape: tuple[int, ...]) -> None:
    points, along = draw(function, shape), draw(function, shape, seed=1)
    expected = formula(function, *wide(points))
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    assert_close(function(*points), expected)
    found = torch.func.vjp(function, *points)[1](slope)
    for one, other in zip(found, torch.func.vjp(partial(formula, function), *wide(points))[1](slope.double()), strict=True):
        assert_close(one, other)
    tangent = torch.func.jvp(partial(formula, function), wide(points), wide(along))[1]
    assert_close(torch.func.jvp(function, points, along)[1], tangent)


@needs_kernels
@pytest.mark.usefixtures("isa")
def test_what_is_added_and_its_factors_may_be_absent() -> None:
    x, weights, added, _ = draw(multiply, (2, 9, 16, 16))
    product = torch.einsum("bli,boi->blo", *wide((x, weights)))
    assert_close(multiply(x, weights), product)
    assert_close(multiply(x, weights, added), product + added.double())
    leaf = added.clone().requires_grad_()
    (slope,) = torch.autograd.grad(multiply(x, weights, leaf).sum(), leaf)
    assert torch.equal(slope, torch.ones_like(added))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_derivatives_of_any_order_pass_finite_differences(function: Any) -> None:
    points = tuple(point.requires_grad_() for point in wide(draw(function, (2, 3, 2, 3))))
    assert torch.autograd.gradcheck(function, points, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, points)
    if function is multiply:
        assert torch.autograd.gradcheck(function, points[:3], check_forward_ad=True)
        assert torch.autograd.gradcheck(function, points[:2], check_forward_ad=True)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_input_alone_has_a_tangent(function: Any) -> None:
    points, along = draw(function, (2, 9, 16, 16)), draw(function, (2, 9, 16, 16), seed=1)
    for number, direction in enumerate(along):

        def moved(own: torch.Tensor, number: int = number) -> torch.Tensor:
            return function(*points[:number], own, *points[number + 1 :])

        def expected(own: torch.Tensor, number: int = number) -> torch.Tensor:
            return formula(function, *wide(points)[:number], own, *wide(points)[number + 1 :])

        found = torch.func.jvp(moved, (points[number],), (direction,))[1]
        assert_close(found, torch.func.jvp(expected, (points[number].double(),), (direction.double(),))[1])


@needs_kernels
@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_strides_are_taken(function: Any) -> None:
    points = draw(function, (2, 9, 16, 16))
    expected = function(*points)
    for laid in (lambda x: torch.cat((x, x), dim=-1)[..., :16], lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)):
        others = tuple(laid(point) for point in points)
        assert not others[0].is_contiguous()
        assert torch.equal(function(*others), expected)


@needs_kernels
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_bits_are_the_same_for_any_number_of_threads(function: Any) -> None:
    points = draw(function, (3, 9000, 16, 16))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = function(*points)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(function(*points), expected)
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_only_what_was_asked_for_is_written() -> None:
    x, weights, added, factors = (tensor.numpy() for tensor in draw(multiply, (2, 9, 16, 16)))
    frame = np.full((4, 9, 20), np.nan, np.float32)
    MODULE.multiply(x, weights, added, factors, frame[1:3, :, 2:18])
    assert not np.isnan(frame[1:3, :, 2:18]).any()
    assert np.isnan(frame).sum() == frame.size - 2 * 9 * 16
    for function, shape in ((MODULE.inner_products, (2, 16, 16)), (MODULE.dot_products, (2, 16))):
        sums = np.full(shape, np.nan, np.float32)
        function(x, added, sums)
        assert not np.isnan(sums).any()


@needs_kernels
def test_arrays_that_do_not_fit_are_refused() -> None:
    x, weights, added, factors = (tensor.numpy() for tensor in draw(multiply, (2, 9, 16, 16)))
    y = np.empty_like(added)
    with pytest.raises(ValueError, match="batch"):
        MODULE.multiply(x, weights, added, factors, y[:, :8])
    with pytest.raises(ValueError, match="channels"):
        MODULE.multiply(x, weights, added[..., :8], factors, y)
    with pytest.raises(ValueError, match="numbers"):
        MODULE.multiply(x, weights[:, :8], added, factors, y)
    with pytest.raises(ValueError, match="weights"):
        MODULE.multiply(x, weights, None, factors, y)
    with pytest.raises(ValueError, match="distance"):
        MODULE.dot_products(x.transpose(0, 2, 1)[:, :9, :9], x[:, :9, :9], np.empty((2, 9), np.float32))
    with pytest.raises(ValueError, match="'d'"):
        MODULE.inner_products(x, added.astype("f8"), np.empty((2, 16, 16), np.float32))
    with pytest.raises(ValueError, match="aligned"):
        MODULE.dot_products(
            x, np.frombuffer(bytes(x.nbytes + 1), "f4", offset=1).reshape(x.shape), np.empty((2, 16), np.float32)
        )
    with pytest.raises(ValueError, match="empty"):
        MODULE.dot_products(x[:0], x[:0], np.empty((0, 16), np.float32))
    with pytest.raises(ValueError, match="'mmx'"):
        MODULE.dot_products(x, x, np.empty((2, 16), np.float32), isa="mmx")


def test_elsewhere_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_products, "suits_kernels", lambda *_: False)
    for function in FUNCTIONS:
        points = draw(function, (2, 9, 16, 16))
        assert_close(function(*points), formula(function, *wide(points)))


def test_what_is_added_in_a_wider_type_is_not_rounded() -> None:
    x, weights, added, _ = draw(multiply, (2, 9, 16, 16))
    narrow = x.bfloat16(), weights.bfloat16()
    found = multiply(*narrow, added)
    assert torch.equal(found, multiply(*narrow).float() + added)
