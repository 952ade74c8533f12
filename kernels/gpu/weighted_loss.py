"""The weighted fusion loss with its gradient in one pass, and its second derivatives in closed form.

With f the fused plane, a and b the sources, w and v the weights of source a in intensity and gradient, N the number of
pixels, S the two Sobel responses (zero-padded) and S* their transpose:

    L = (1/N) sum I + (c/N) sum G

    squared     I = w^2 (f - a)^2 + (1 - w)^2 (f - b)^2
    absolute    I = w |f - a| + (1 - w) |f - b|

    signed      G = v |Sf - Sa|_1 + (1 - v) |Sf - Sb|_1
    signed-max  the same with v = 1 where |Sa|_1 >= |Sb|_1, else 0
    magnitude   G = v^2 (m - Ma)^2 + (1 - v)^2 (m - Mb)^2,  m = |Sf|_1, Ma = |Sa|_1, Mb = |Sb|_1

Gradient, with h the derivative of G in Sf:

    dL/df = (1/N) dI/df + (c/N) S* h
    dL/dw = (1/N) dI/dw
    dL/dv = (c/N) dG/dv

    squared     dI/df = 2 [w^2 (f - a) + (1 - w)^2 (f - b)],         dI/dw = 2 [w (f - a)^2 - (1 - w) (f - b)^2]
    absolute    dI/df = w sign(f - a) + (1 - w) sign(f - b),         dI/dw = |f - a| - |f - b|

The second derivatives are those of these expressions, the sign function being constant almost everywhere; for the
intensity they are a symmetric 2x2 matrix of each pixel: ``ff = 2 (w^2 + (1-w)^2)``, ``fw = 4 (w (f-a) - (1-w)(f-b))``,
``ww = 2 ((f-a)^2 + (f-b)^2)`` where it is squared, ``fw = sign(f-a) - sign(f-b)`` and nothing else where it is absolute.
A third derivative is refused.

Layout: everything (B, 1, H, W), contiguous, one dtype. A program of the kernels owns a row of TILE pixels and reads a
window of 5x5 around each, because S* h at a pixel needs Sf at its neighbors.

Source:
    ReFusion's fusion loss (IJCV 2024) and TDFusion's signed gradient term, as ``refusion_edge.train.losses`` defines
    them; the derivatives are worked out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.errors import BackendError, ShapeError, TrainingError, UsageError
from refusion_edge.kernels.gpu.language import COMPILER_OPTIONS, TRITON_INSTALLED, is_interpreted, jit, tl

Term = Literal["signed", "magnitude", "signed-max"]
Norm = Literal["squared", "absolute"]
"""Of the intensity term."""
Engine = Literal["closed", "triton"]
"""``closed``: the closed forms in torch operations, on any device. ``triton``: the kernels."""

_TERMS: tuple[Term, ...] = ("signed", "magnitude", "signed-max")
_NORMS: tuple[Norm, ...] = ("squared", "absolute")
_ENGINES: tuple[Engine, ...] = ("closed", "triton")
_TILE = 128


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is not differentiated: the arguments of ``weighted_loss`` after the planes."""

    coefficient: float
    term: Term
    norm: Norm
    engine: Engine


def weighted_loss(
    fused: Tensor,
    a: Tensor,
    b: Tensor,
    intensity: Tensor,
    gradient: Tensor,
    coefficient: float,
    term: Term,
    engine: Engine,
    norm: Norm = "squared",
) -> Tensor:
    """Evaluate the loss; differentiable twice in the fused plane and the weights, and not at all in the sources.

    Args:
        fused: f, (B, 1, H, W) floating.
        a: Source a, same shape and dtype; a constant.
        b: Source b, the same.
        intensity: w, [0, 1], same shape or one that broadcasts.
        gradient: v, the same.
        coefficient: c.
        term: Which gradient term.
        engine: ``closed`` or ``triton``.
        norm: Which intensity term.

    Returns:
        Scalar.

    Raises:
        ShapeError: Shapes, dtypes or devices differ, or the kernels do not take them.
        UsageError: A source requires a gradient, or there is no such term, norm or engine.
        BackendError: Triton is asked for and not installed.
    """
    for what, got, known in (
        ("gradient term", term, _TERMS),
        ("intensity term", norm, _NORMS),
        ("engine", engine, _ENGINES),
    ):
        if got not in known:
            raise UsageError(
                f"there is no {what} '{got}' for the fusion loss",
                f"choose one of {', '.join(known)}",
                expected=tuple(known),
                got=got,
            )
    _check_planes(fused, a, b)
    for name, weight in (("intensity", intensity), ("gradient", gradient)):
        _check_weights(name, weight, fused)
    if engine == "triton":
        _require_kernels(fused)
    w, v = (weight.to(fused.dtype).expand_as(fused) for weight in (intensity, gradient))
    planes = (plane.contiguous() for plane in (fused, w, v, a, b))
    loss: Tensor = _Loss.apply(*planes, _Choice(float(coefficient), term, norm, engine))[0]
    return loss


def _check_planes(fused: Tensor, a: Tensor, b: Tensor) -> None:
    if fused.dim() != 4 or fused.shape[1] != 1 or not fused.numel():
        raise ShapeError(
            f"the loss takes planes of shape (B, 1, H, W), not {tuple(fused.shape)}",
            "reshape them",
            expected=("B", 1, "H", "W"),
            got=tuple(fused.shape),
        )
    if not fused.is_floating_point():
        raise ShapeError(f"the loss takes floating-point planes in [0, 1], not {fused.dtype}", "convert them", got=fused.dtype)
    for name, tensor in (("source a", a), ("source b", b)):
        if tensor.shape != fused.shape or tensor.dtype != fused.dtype or tensor.device != fused.device:
            raise ShapeError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device} but the fused plane is "
                f"{tuple(fused.shape)} {fused.dtype} on {fused.device}",
                "convert one of them",
                expected=(tuple(fused.shape), fused.dtype, fused.device),
                got=(tuple(tensor.shape), tensor.dtype, tensor.device),
            )
        if tensor.requires_grad:
            raise UsageError(f"the loss has no gradient with respect to {name}, which requires one", "detach it")


def _check_weights(name: str, weight: Tensor, fused: Tensor) -> None:
    if weight.device != fused.device:
        raise ShapeError(
            f"the {name} weights are on {weight.device} but the fused plane is on {fused.device}",
            "move one of them",
            expected=fused.device,
            got=weight.device,
        )
    sides = zip(reversed(weight.shape), reversed(fused.shape), strict=False)
    if weight.dim() > fused.dim() or any(side not in (1, whole) for side, whole in sides):
        raise ShapeError(
            f"the {name} weights {tuple(weight.shape)} do not broadcast to the fused plane {tuple(fused.shape)}",
            "compute them from the same sources",
            expected=tuple(fused.shape),
            got=tuple(weight.shape),
        )


def _require_kernels(fused: Tensor) -> None:
    if not TRITON_INSTALLED:
        raise BackendError("the loss kernel needs Triton, which is not installed", "run: pip install 'refusion-edge[triton]'")
    if not (fused.is_cuda or is_interpreted()):
        raise ShapeError(
            f"the loss kernel takes planes on a CUDA device, not on {fused.device}",
            "move them",
            expected="cuda",
            got=fused.device.type,
        )
    # Squares of small differences, and sums of them over all pixels, are not for half precision.
    if fused.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"the loss kernel takes float32 planes, not {fused.dtype}",
            "convert them with .float()",
            expected=torch.float32,
            got=fused.dtype,
        )


class _Loss(torch.autograd.Function):
    """(f, w, v, a, b) to the loss and, on the way, its gradient (3, B, 1, H, W)."""

    @staticmethod
    def forward(f: Tensor, w: Tensor, v: Tensor, a: Tensor, b: Tensor, choice: _Choice) -> tuple[Tensor, Tensor]:
        evaluate = value_and_gradient if choice.engine == "closed" else _launch_gradient
        return evaluate(f, w, v, a, b, choice.coefficient, choice.term, choice.norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        # The gradient sends nothing back, and zeros for it would be a launch.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:5], output[1])
        ctx.choice = inputs[5]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return (*_Gradient.apply(slope, *ctx.saved_tensors, ctx.choice), *(None,) * 3)


class _Gradient(torch.autograd.Function):
    """The slope of the loss times its gradient, one tensor for each of f, w, v, with a backward pass of its own."""

    @staticmethod
    def forward(
        slope: Tensor, f: Tensor, w: Tensor, v: Tensor, a: Tensor, b: Tensor, gradient: Tensor, choice: _Choice
    ) -> tuple[Tensor, ...]:
        return (slope * gradient).unbind()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        # Most often f alone sends something back; zeros for w and v would be launches of their own.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:7])
        ctx.choice = inputs[7]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        of_slope, product = _SecondOrder.apply(*cotangents, *ctx.saved_tensors, ctx.choice)
        return (of_slope, *product.unbind(), *(None,) * 4)


class _SecondOrder(torch.autograd.Function):
    """What cotangents of the slope times the gradient send back: to the slope, a scalar, and to f, w and v, (3, B, 1, H, W)."""

    @staticmethod
    def forward(
        of_f: Tensor | None,
        of_w: Tensor | None,
        of_v: Tensor | None,
        slope: Tensor,
        f: Tensor,
        w: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        gradient: Tensor,
        choice: _Choice,
    ) -> tuple[Tensor, Tensor]:
        if choice.engine == "triton":
            return _launch_second_order((of_f, of_w, of_v), slope, (f, w, v, a, b), gradient, choice)
        cotangent = torch.stack([torch.zeros_like(f) if one is None else one for one in (of_f, of_w, of_v)])
        product = second_order_product(cotangent, f, w, v, a, b, choice.coefficient, choice.term, choice.norm)
        return (cotangent * gradient).sum(), slope * product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep nothing: there is no further derivative."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        raise TrainingError(
            "the closed forms of the fusion loss stop at the second derivative",
            "use the engine 'reference', which torch differentiates any number of times",
        )


def value_and_gradient(
    f: Tensor, w: Tensor, v: Tensor, a: Tensor, b: Tensor, coefficient: float, term: Term, norm: Norm = "squared"
) -> tuple[Tensor, Tensor]:
    """Evaluate the loss and its gradient by the closed forms of the module.

    Args:
        f: Fused plane, (B, 1, H, W).
        w: Weights of intensity, same shape.
        v: Weights of the gradient, same shape.
        a: Source a, same shape.
        b: Source b, same shape.
        coefficient: c.
        term: Which gradient term.
        norm: Which intensity term.

    Returns:
        The loss, a scalar, and (3, B, 1, H, W): its derivatives in f, w and v.
    """
    count = f.numel()
    distance_a, distance_b = f - a, f - b
    if norm == "absolute":
        intensity = w * distance_a.abs() + (1 - w) * distance_b.abs()
        by_f = w * distance_a.sign() + (1 - w) * distance_b.sign()
        by_w = distance_a.abs() - distance_b.abs()
    else:
        intensity = (w * distance_a).square() + ((1 - w) * distance_b).square()
        by_f = 2 * (w.square() * distance_a + (1 - w).square() * distance_b)
        by_w = 2 * (w * distance_a.square() - (1 - w) * distance_b.square())
    response, response_a, response_b = _sobel(f), _sobel(a), _sobel(b)
    if term == "magnitude":
        error_a, error_b = _length(response) - _length(response_a), _length(response) - _length(response_b)
        value = (v * error_a).square() + ((1 - v) * error_b).square()
        h = 2 * (v.square() * error_a + (1 - v).square() * error_b) * response.sign()
        by_v = 2 * (v * error_a.square() - (1 - v) * error_b.square())
    else:
        share = _hard(response_a, response_b) if term == "signed-max" else v
        error_a, error_b = response - response_a, response - response_b
        value = share * _length(error_a) + (1 - share) * _length(error_b)
        h = share * error_a.sign() + (1 - share) * error_b.sign()
        by_v = torch.zeros_like(v) if term == "signed-max" else _length(error_a) - _length(error_b)
    loss = (intensity + coefficient * value).sum() / count
    gradient = torch.stack((by_f + coefficient * _sobel_transposed(h), by_w, coefficient * by_v)) / count
    return loss, gradient


def second_order_product(
    cotangent: Tensor,
    f: Tensor,
    w: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    coefficient: float,
    term: Term,
    norm: Norm = "squared",
) -> Tensor:
    """Multiply the second derivatives with a cotangent of the gradient, by the closed forms of the module.

    Args:
        cotangent: (3, B, 1, H, W): of the derivatives in f, w and v.
        f: As in ``value_and_gradient``, like all that follows.
        w: Weights of intensity.
        v: Weights of the gradient.
        a: Source a.
        b: Source b.
        coefficient: c.
        term: Which gradient term.
        norm: Which intensity term.

    Returns:
        (3, B, 1, H, W).
    """
    of_f, of_w, of_v = cotangent
    distance_a, distance_b = f - a, f - b
    if norm == "absolute":
        mixed = distance_a.sign() - distance_b.sign()
        by_f, by_w = mixed * of_w, mixed * of_f
    else:
        mixed = 4 * (w * distance_a - (1 - w) * distance_b)
        by_f = 2 * (w.square() + (1 - w).square()) * of_f + mixed * of_w
        by_w = mixed * of_f + 2 * (distance_a.square() + distance_b.square()) * of_w
    response, response_a, response_b, change = _sobel(f), _sobel(a), _sobel(b), _sobel(of_f)
    if term == "magnitude":
        sign = response.sign()
        error_a, error_b = _length(response) - _length(response_a), _length(response) - _length(response_b)
        growth = (sign * change).sum(dim=1, keepdim=True)
        mixed = 4 * (v * error_a - (1 - v) * error_b)
        h = (2 * (v.square() + (1 - v).square()) * growth + mixed * of_v) * sign
        by_v = mixed * growth + 2 * (error_a.square() + error_b.square()) * of_v
    elif term == "signed":
        turn = (response - response_a).sign() - (response - response_b).sign()
        h = turn * of_v
        by_v = (turn * change).sum(dim=1, keepdim=True)
    else:
        h, by_v = torch.zeros_like(response), torch.zeros_like(v)
    return torch.stack((by_f + coefficient * _sobel_transposed(h), by_w, coefficient * by_v)) / f.numel()


def _kernels(like: Tensor) -> Tensor:
    horizontal = like.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    return torch.stack((horizontal, horizontal.T))[:, None]


def _sobel(x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, _kernels(x), padding=1)


def _sobel_transposed(h: Tensor) -> Tensor:
    with torch.autocast(h.device.type, enabled=False):
        return F.conv_transpose2d(h, _kernels(h), padding=1)


def _length(response: Tensor) -> Tensor:
    return response.abs().sum(dim=1, keepdim=True)


def _hard(response_a: Tensor, response_b: Tensor) -> Tensor:
    return (_length(response_a) >= _length(response_b)).to(response_a.dtype)


@jit
def _at(x_ptr, y, x, height, width):
    inside = (x >= 0) & (x < width) & (y + tl.zeros_like(x) >= 0) & (y + tl.zeros_like(x) < height)
    return tl.load(x_ptr + y * width + x, mask=inside, other=0.0)


@jit
def _responses(x_ptr, y, x, height, width):
    north_west, north_east = _at(x_ptr, y - 1, x - 1, height, width), _at(x_ptr, y - 1, x + 1, height, width)
    south_west, south_east = _at(x_ptr, y + 1, x - 1, height, width), _at(x_ptr, y + 1, x + 1, height, width)
    north, south = _at(x_ptr, y - 1, x, height, width), _at(x_ptr, y + 1, x, height, width)
    west, east = _at(x_ptr, y, x - 1, height, width), _at(x_ptr, y, x + 1, height, width)
    horizontal = (north_east - north_west) + 2 * (east - west) + (south_east - south_west)
    vertical = (south_west - north_west) + 2 * (south - north) + (south_east - north_east)
    return horizontal, vertical


@jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@jit
def _gradient_term(f_ptr, v_ptr, a_ptr, b_ptr, y, x, height, width, TERM: tl.constexpr):
    # Value, derivative in v, and derivative in both responses of f, at one pixel.
    v = _at(v_ptr, y, x, height, width)
    fx, fy = _responses(f_ptr, y, x, height, width)
    ax, ay = _responses(a_ptr, y, x, height, width)
    bx, by = _responses(b_ptr, y, x, height, width)
    if TERM == 1:
        error_a = (tl.abs(fx) + tl.abs(fy)) - (tl.abs(ax) + tl.abs(ay))
        error_b = (tl.abs(fx) + tl.abs(fy)) - (tl.abs(bx) + tl.abs(by))
        value = v * v * error_a * error_a + (1 - v) * (1 - v) * error_b * error_b
        slope = 2 * (v * v * error_a + (1 - v) * (1 - v) * error_b)
        by_v = 2 * (v * error_a * error_a - (1 - v) * error_b * error_b)
        return value, by_v, slope * _sign(fx), slope * _sign(fy)
    else:
        length_a = tl.abs(fx - ax) + tl.abs(fy - ay)
        length_b = tl.abs(fx - bx) + tl.abs(fy - by)
        by_v = length_a - length_b
        if TERM == 2:
            v = tl.where(tl.abs(ax) + tl.abs(ay) >= tl.abs(bx) + tl.abs(by), 1.0, 0.0).to(v.dtype)
            by_v = by_v * 0
        value = v * length_a + (1 - v) * length_b
        slope_x = v * _sign(fx - ax) + (1 - v) * _sign(fx - bx)
        slope_y = v * _sign(fy - ay) + (1 - v) * _sign(fy - by)
        return value, by_v, slope_x, slope_y


@jit
def _transposed(total, h_x, h_y, y, x, height, width, DY: tl.constexpr, DX: tl.constexpr):
    # The response at a neighbor holds this pixel with the weight of the opposite direction.
    inside = (x >= 0) & (x < width) & (y + tl.zeros_like(x) >= 0) & (y + tl.zeros_like(x) < height)
    weight_x: tl.constexpr = -DX * (2 - DY * DY)
    weight_y: tl.constexpr = -DY * (2 - DX * DX)
    return total + tl.where(inside, weight_x * h_x + weight_y * h_y, 0.0)


@jit
def weighted_loss_kernel(f_ptr, w_ptr, v_ptr, a_ptr, b_ptr, gradient_ptr, partial_ptr, height, width, coefficient, scale,
                         TERM: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    y = tl.program_id(1)
    x = tl.program_id(0) * TILE + tl.arange(0, TILE)
    size = tl.cast(height, tl.int64) * width
    plane = tl.program_id(2) * size
    f_ptr, w_ptr, v_ptr, a_ptr, b_ptr = f_ptr + plane, w_ptr + plane, v_ptr + plane, a_ptr + plane, b_ptr + plane
    inside = x < width
    f, w = _at(f_ptr, y, x, height, width), _at(w_ptr, y, x, height, width)
    distance_a, distance_b = f - _at(a_ptr, y, x, height, width), f - _at(b_ptr, y, x, height, width)
    value, by_v, _, _ = _gradient_term(f_ptr, v_ptr, a_ptr, b_ptr, y, x, height, width, TERM)
    if NORM == 1:
        intensity = w * tl.abs(distance_a) + (1 - w) * tl.abs(distance_b)
        by_f = w * _sign(distance_a) + (1 - w) * _sign(distance_b)
        by_w = tl.abs(distance_a) - tl.abs(distance_b)
    else:
        intensity = w * w * distance_a * distance_a + (1 - w) * (1 - w) * distance_b * distance_b
        by_f = 2 * (w * w * distance_a + (1 - w) * (1 - w) * distance_b)
        by_w = 2 * (w * distance_a * distance_a - (1 - w) * distance_b * distance_b)
    loss = intensity + coefficient * value
    spread = tl.zeros_like(f)
    for n in tl.static_range(9):
        if n != 4:
            _, _, h_x, h_y = _gradient_term(f_ptr, v_ptr, a_ptr, b_ptr, y + n // 3 - 1, x + n % 3 - 1, height, width, TERM)
            spread = _transposed(spread, h_x, h_y, y + n // 3 - 1, x + n % 3 - 1, height, width, n // 3 - 1, n % 3 - 1)
    total = size * tl.num_programs(2)
    out_ptr = gradient_ptr + plane + y * width + x
    tl.store(out_ptr, (by_f + coefficient * spread) * scale, mask=inside)
    tl.store(out_ptr + total, by_w * scale, mask=inside)
    tl.store(out_ptr + 2 * total, coefficient * by_v * scale, mask=inside)
    row = (tl.program_id(2) * tl.num_programs(1) + y) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial_ptr + row, tl.sum(tl.where(inside, loss, 0.0), axis=0) * scale)


@jit
def _second_order_term(f_ptr, v_ptr, a_ptr, b_ptr, of_f_ptr, of_v_ptr, y, x, height, width, HAS_F: tl.constexpr,
                       HAS_V: tl.constexpr, TERM: tl.constexpr):  # fmt: skip
    # What goes to v, and to both responses of f, at one pixel.
    v = _at(v_ptr, y, x, height, width)
    fx, fy = _responses(f_ptr, y, x, height, width)
    ax, ay = _responses(a_ptr, y, x, height, width)
    bx, by = _responses(b_ptr, y, x, height, width)
    of_v, ux, uy = tl.zeros_like(v), tl.zeros_like(fx), tl.zeros_like(fy)
    if HAS_V:
        of_v = _at(of_v_ptr, y, x, height, width)
    if HAS_F:
        ux, uy = _responses(of_f_ptr, y, x, height, width)
    if TERM == 1:
        error_a = (tl.abs(fx) + tl.abs(fy)) - (tl.abs(ax) + tl.abs(ay))
        error_b = (tl.abs(fx) + tl.abs(fy)) - (tl.abs(bx) + tl.abs(by))
        growth = _sign(fx) * ux + _sign(fy) * uy
        mixed = 4 * (v * error_a - (1 - v) * error_b)
        h = 2 * (v * v + (1 - v) * (1 - v)) * growth + mixed * of_v
        by_v = mixed * growth + 2 * (error_a * error_a + error_b * error_b) * of_v
        return by_v, h * _sign(fx), h * _sign(fy)
    else:
        turn_x, turn_y = _sign(fx - ax) - _sign(fx - bx), _sign(fy - ay) - _sign(fy - by)
        return turn_x * ux + turn_y * uy, turn_x * of_v, turn_y * of_v


@jit
def second_order_kernel(of_f_ptr, of_w_ptr, of_v_ptr, slope_ptr, gradient_ptr, f_ptr, w_ptr, v_ptr, a_ptr, b_ptr, product_ptr,
                        partial_ptr, height, width, coefficient, scale, HAS_F: tl.constexpr, HAS_W: tl.constexpr,
                        HAS_V: tl.constexpr, TERM: tl.constexpr, NORM: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    y = tl.program_id(1)
    x = tl.program_id(0) * TILE + tl.arange(0, TILE)
    size = tl.cast(height, tl.int64) * width
    plane = tl.program_id(2) * size
    total = size * tl.num_programs(2)
    of_f_ptr, of_w_ptr, of_v_ptr, gradient_ptr = of_f_ptr + plane, of_w_ptr + plane, of_v_ptr + plane, gradient_ptr + plane
    f_ptr, w_ptr, v_ptr, a_ptr, b_ptr = f_ptr + plane, w_ptr + plane, v_ptr + plane, a_ptr + plane, b_ptr + plane
    inside = x < width
    f, w = _at(f_ptr, y, x, height, width), _at(w_ptr, y, x, height, width)
    # What does not send anything back sends zero.
    of_f, of_w, of_slope = tl.zeros_like(f), tl.zeros_like(f), tl.zeros_like(f)
    if HAS_F:
        of_f = _at(of_f_ptr, y, x, height, width)
        of_slope += of_f * _at(gradient_ptr, y, x, height, width)
    if HAS_W:
        of_w = _at(of_w_ptr, y, x, height, width)
        of_slope += of_w * _at(gradient_ptr + total, y, x, height, width)
    if HAS_V:
        of_slope += _at(of_v_ptr, y, x, height, width) * _at(gradient_ptr + 2 * total, y, x, height, width)
    distance_a, distance_b = f - _at(a_ptr, y, x, height, width), f - _at(b_ptr, y, x, height, width)
    if NORM == 1:
        mixed = _sign(distance_a) - _sign(distance_b)
        by_f = mixed * of_w
        by_w = mixed * of_f
    else:
        mixed = 4 * (w * distance_a - (1 - w) * distance_b)
        by_f = 2 * (w * w + (1 - w) * (1 - w)) * of_f + mixed * of_w
        by_w = mixed * of_f + 2 * (distance_a * distance_a + distance_b * distance_b) * of_w
    by_v = tl.zeros_like(f)
    if TERM != 2:
        by_v, _, _ = _second_order_term(f_ptr, v_ptr, a_ptr, b_ptr, of_f_ptr, of_v_ptr, y, x, height, width, HAS_F, HAS_V, TERM)
        spread = tl.zeros_like(f)
        for n in tl.static_range(9):
            if n != 4:
                _, h_x, h_y = _second_order_term(
                    f_ptr, v_ptr, a_ptr, b_ptr, of_f_ptr, of_v_ptr, y + n // 3 - 1, x + n % 3 - 1, height, width, HAS_F, HAS_V,
                    TERM,
                )  # fmt: skip
                spread = _transposed(spread, h_x, h_y, y + n // 3 - 1, x + n % 3 - 1, height, width, n // 3 - 1, n % 3 - 1)
        by_f += coefficient * spread
    scale = scale * tl.load(slope_ptr)
    out_ptr = product_ptr + plane + y * width + x
    tl.store(out_ptr, by_f * scale, mask=inside)
    tl.store(out_ptr + total, by_w * scale, mask=inside)
    tl.store(out_ptr + 2 * total, coefficient * by_v * scale, mask=inside)
    row = (tl.program_id(2) * tl.num_programs(1) + y) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial_ptr + row, tl.sum(tl.where(inside, of_slope, 0.0), axis=0))


def _switches(term: Term, norm: Norm) -> dict[str, int]:
    return {"TERM": _TERMS.index(term), "NORM": _NORMS.index(norm), "TILE": _TILE}


def all_switches() -> list[dict[str, int]]:
    """What the kernels are compiled for where all three of f, w and v send something back: terms with the squared norm."""
    senders = {f"HAS_{name}": True for name in "FWV"}
    return [{**senders, **_switches(term, "squared"), **COMPILER_OPTIONS} for term in _TERMS]


def _launch_gradient(
    f: Tensor, w: Tensor, v: Tensor, a: Tensor, b: Tensor, coefficient: float, term: Term, norm: Norm
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = f.shape
    grid = (-(-width // _TILE), height, batch)
    gradient, partial = f.new_empty((3, *f.shape)), f.new_empty(grid)
    numbers = height, width, coefficient, 1 / f.numel()
    # Triton launches on the current device, whatever its arguments lie on.
    with torch.cuda.device_of(f):
        weighted_loss_kernel[grid](f, w, v, a, b, gradient, partial, *numbers, **_switches(term, norm), **COMPILER_OPTIONS)
    # A second launch, so that the sum has one order and a repeat gives the same bits.
    return partial.sum(), gradient


def _launch_second_order(
    cotangents: tuple[Tensor | None, ...], slope: Tensor, planes: tuple[Tensor, ...], gradient: Tensor, choice: _Choice
) -> tuple[Tensor, Tensor]:
    f = planes[0]
    batch, _, height, width = f.shape
    grid = (-(-width // _TILE), height, batch)
    product, partial = torch.empty_like(gradient), f.new_empty(grid)
    # Anything may stand where the kernel does not look.
    given = [f if one is None else one.contiguous() for one in cotangents]
    there = {f"HAS_{name}": one is not None for name, one in zip("FWV", cotangents, strict=True)}
    numbers = height, width, choice.coefficient, 1 / f.numel()
    switches = {**there, **_switches(choice.term, choice.norm), **COMPILER_OPTIONS}
    with torch.cuda.device_of(f):
        second_order_kernel[grid](*given, slope, gradient, *planes, product, partial, *numbers, **switches)
    return partial.sum(), product
