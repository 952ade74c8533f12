"""The loss with closed-form derivatives against autograd on the plain loss, and the Triton kernels against both."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from torch.utils._python_dispatch import TorchDispatchMode

from refusion_edge.errors import BackendError, RefusionError, ShapeError, TrainingError, UsageError
from refusion_edge.kernels.gpu import weighted_loss as loss_module
from refusion_edge.kernels.gpu.language import TRITON_INSTALLED
from refusion_edge.kernels.gpu.weighted_loss import Engine, Norm, Term, weighted_loss
from refusion_edge.train import losses
from refusion_edge.train.losses import LossWeights, fusion_loss
from tests.raising import raises

TERMS = ("signed", "magnitude", "signed-max")
NORMS = ("squared", "absolute")
ENGINES = (
    "closed",
    pytest.param("triton", marks=pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: refusion-edge[triton]")),
)
SIZE = (2, 1, 1, 3)


def planes(count: int = 5, size: tuple[int, ...] = SIZE) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def plain(
    f: torch.Tensor, w: torch.Tensor, v: torch.Tensor, a: torch.Tensor, b: torch.Tensor, term: Term, norm: Norm = "squared"
) -> torch.Tensor:
    return fusion_loss(f, a, b, LossWeights(w, v), 0.3, term, norm, "reference")


def second_derivatives(loss: torch.Tensor, inputs: list[torch.Tensor], cotangents: list[torch.Tensor]) -> list[torch.Tensor]:
    first = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
    product = sum((gradient * cotangent).sum() for gradient, cotangent in zip(first, cotangents, strict=True))
    return [loss, *first, *torch.autograd.grad(product, inputs, materialize_grads=True)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("term", TERMS)
def test_value_gradient_and_second_order_equal_autograd_on_the_plain_loss(term: Term, norm: Norm, engine: Engine) -> None:
    f, w, v, a, b = planes()
    leaves = [tensor.requires_grad_() for tensor in (f, w, v)]
    cotangents = planes(8)[5:]
    expected = second_derivatives(plain(f, w, v, a, b, term, norm) * 3, leaves, cotangents)
    got = second_derivatives(weighted_loss(f, a, b, w, v, 0.3, term, engine, norm) * 3, leaves, cotangents)
    assert max(float(tensor.detach().abs().max()) for tensor in expected[4:]) > 0.01
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (1, 1, 3, 130)])
def test_borders_and_several_tiles(size: tuple[int, ...], engine: Engine) -> None:
    f, w, v, a, b = planes(size=size)
    f.requires_grad_()
    expected = torch.autograd.grad(plain(f, w, v, a, b, "signed"), f)[0]
    got = torch.autograd.grad(weighted_loss(f, a, b, w, v, 0.3, "signed", engine), f)[0]
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("senders", ["f", "w", "v", "fv"])
def test_only_what_sends_something_back_counts(senders: str, engine: Engine) -> None:
    f, w, v, a, b = planes()
    leaves = [tensor.requires_grad_() for tensor in (f, w, v)]
    slope = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    cotangents = planes(8)[5:]

    def sent_back(loss: torch.Tensor) -> list[torch.Tensor]:
        first = torch.autograd.grad(loss, leaves, slope, create_graph=True, materialize_grads=True)
        product = sum((first["fwv".index(name)] * cotangents["fwv".index(name)]).sum() for name in senders)
        return list(torch.autograd.grad(product, [*leaves, slope], materialize_grads=True))

    expected = sent_back(plain(f, w, v, a, b, "signed"))
    for one, other in zip(sent_back(weighted_loss(f, a, b, w, v, 0.3, "signed", engine)), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


class CountedWork(TorchDispatchMode):
    """Counts torch operations that compute something; views and empty memory are none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach", "lift")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: refusion-edge[triton]")
def test_each_order_is_at_most_three_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    f, w, v, a, b = planes(size=(1, 1, 2, 3))
    leaves = [f.requires_grad_(), w.requires_grad_()]
    cotangent, launched = planes(6, (1, 1, 2, 3))[5], []

    class Noted:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *given, **constants: launched.append(grid)

    for name in ("weighted_loss_kernel", "second_order_kernel"):
        monkeypatch.setattr(loss_module, name, Noted())
    with CountedWork() as forward:
        loss = weighted_loss(f, a, b, w, v, 0.3, "signed", "triton")
    slope = torch.ones_like(loss)
    with CountedWork() as backward:
        first = torch.autograd.grad(loss, leaves, slope, create_graph=True)
    with CountedWork() as second:
        torch.autograd.grad(first[0], leaves, cotangent)
    assert (forward.names, backward.names, second.names) == (["sum"], ["mul"], ["sum"])
    assert len(launched) == 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_meta_gradient_through_an_inner_step_of_torch_func_equals_that_of_the_plain_loss(engine: Engine) -> None:
    f, w, v, a, b = planes()

    def outer(weight: torch.Tensor, *, by_kernel: bool) -> torch.Tensor:
        def inner(gain: torch.Tensor) -> torch.Tensor:
            fused = gain * f
            return weighted_loss(fused, a, b, weight, v, 0.3, "signed", engine) if by_kernel else plain(
                fused, weight, v, a, b, "signed"
            )  # fmt: skip

        gain = torch.tensor(1.1, dtype=torch.float64)
        return ((gain - 0.5 * torch.func.grad(inner)(gain)) * f - a).square().mean()

    got, expected = (torch.func.grad(lambda weight, by=by: outer(weight, by_kernel=by))(w) for by in (True, False))
    assert expected.abs().max() > 1e-5
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-15)


def test_closed_forms_agree_with_finite_differences() -> None:
    f, w, v, a, b = planes(size=(1, 1, 3, 4))
    leaves = [tensor.requires_grad_() for tensor in (f, w, v)]
    for term, norm in itertools.product(TERMS[:2], NORMS):
        assert torch.autograd.gradgradcheck(
            lambda f, w, v, term=term, norm=norm: weighted_loss(f, a, b, w, v, 0.3, term, "closed", norm), leaves, atol=1e-6
        )


def test_a_third_derivative_is_refused() -> None:
    f, w, v, a, b = planes()
    f.requires_grad_()
    (first,) = torch.autograd.grad(weighted_loss(f, a, b, w, v, 0.3, "magnitude", "closed"), f, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), f, create_graph=True)
    with raises(TrainingError, "second derivative"):
        torch.autograd.grad(second.sum(), f)


@pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: refusion-edge[triton]")
def test_training_takes_the_kernels_by_one_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    f, w, v, a, b = (tensor.float() for tensor in planes())
    calls = []
    honest = loss_module.value_and_gradient
    monkeypatch.setattr(loss_module, "_launch_gradient", lambda *given: calls.append(given) or honest(*given))
    expected = fusion_loss(f, a, b, LossWeights(w, v), 0.3)
    assert not calls  # a CPU has the reference
    monkeypatch.setattr(losses, "LOSS_ENGINE", "triton")
    assert fusion_loss(f, a, b, LossWeights(w, v), 0.3).item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(calls) == 1
    assert fusion_loss(f, a, b, LossWeights(w[:1, :, :1, :1], v), 0.3).isfinite()


def arguments(**changed: Any) -> dict[str, Any]:
    """Arguments of the loss, some of them changed: by a function of the plane, or to another value."""
    f, w, v, a, b = planes()
    fitting = {"fused": f, "a": a, "b": b, "intensity": w, "gradient": v, "coefficient": 0.3, "term": "signed"}
    chosen = {**fitting, "engine": "closed", "norm": "squared"}
    return chosen | {name: change(chosen[name]) if callable(change) else change for name, change in changed.items()}


def every(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return dict.fromkeys(("fused", "a", "b", "intensity", "gradient"), change)


def elsewhere(x: torch.Tensor) -> torch.Tensor:
    return x.to("meta")


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("changed", "error", "named", "got"),
    [
        ({"term": "unknown"}, UsageError, "gradient term", "unknown"),
        ({"norm": "unknown"}, UsageError, "intensity term", "unknown"),
        ({"engine": "reference"}, UsageError, "engine", "reference"),
        (every(lambda x: x[0]), ShapeError, "(B, 1, H, W)", (1, 1, 3)),
        (every(lambda x: x.repeat(1, 3, 1, 1)), ShapeError, "(B, 1, H, W)", (2, 3, 1, 3)),
        (every(lambda x: x[..., :0]), ShapeError, "(B, 1, H, W)", (2, 1, 1, 0)),
        (every(lambda x: (x * 255).byte()), ShapeError, "[0, 1]", torch.uint8),
        ({"a": lambda x: x[:1]}, ShapeError, "source a", ((1, 1, 1, 3), torch.float64, CPU)),
        ({"b": lambda x: x.float()}, ShapeError, "source b", ((2, 1, 1, 3), torch.float32, CPU)),
        ({"b": elsewhere}, ShapeError, "source b", ((2, 1, 1, 3), torch.float64, torch.device("meta"))),
        ({"a": lambda x: x.requires_grad_()}, UsageError, "source a", None),
        ({"b": lambda x: x.requires_grad_()}, UsageError, "source b", None),
        ({"intensity": elsewhere}, ShapeError, "intensity", torch.device("meta")),
        ({"gradient": elsewhere}, ShapeError, "gradient", torch.device("meta")),
        ({"intensity": lambda x: x[..., :2]}, ShapeError, "intensity", (2, 1, 1, 2)),
        ({"gradient": lambda x: x[None]}, ShapeError, "gradient", (1, 2, 1, 1, 3)),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], error: type[RefusionError], named: str, got: object) -> None:
    with raises(error, named, got=got):
        weighted_loss(**arguments(**changed))


def test_what_the_kernels_do_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "TRITON_INSTALLED", True)

    def refused(error: type[RefusionError], fields: dict[str, Any], **changed: Any) -> None:
        with raises(error, **fields):
            weighted_loss(**arguments(engine="triton", **changed))

    monkeypatch.setattr(loss_module, "is_interpreted", lambda: True)
    refused(ShapeError, {"got": torch.float16}, **every(torch.Tensor.half))
    monkeypatch.setattr(loss_module, "is_interpreted", lambda: False)
    refused(ShapeError, {"expected": "cuda", "got": "cpu"})
    monkeypatch.setattr(loss_module, "TRITON_INSTALLED", False)
    refused(BackendError, {"remedy": "refusion-edge[triton]"})


def test_an_engine_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    f, w, v, a, b = planes()
    monkeypatch.delenv("TRITON_INTERPRET")
    with raises(BackendError, expected="cuda", got="cpu"):
        fusion_loss(f, a, b, LossWeights(w, v), 0.3, "signed", engine="triton")
    with raises(UsageError, got="fast"):
        fusion_loss(f, a, b, LossWeights(w, v), 0.3, "signed", engine="fast")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_planes_and_cotangents_may_lie_in_memory_in_any_way(engine: Engine) -> None:
    given = planes(8, (1, 1, 2, 3))
    apart = [plane.transpose(2, 3).contiguous().transpose(2, 3) for plane in given]
    assert not any(plane.is_contiguous() for plane in apart)

    def results(f: torch.Tensor, w: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor) -> list[torch.Tensor]:
        leaves = [tensor.requires_grad_() for tensor in (f, w, v)]
        loss = weighted_loss(f, *rest[:2], w, v, 0.3, "signed", engine)
        return second_derivatives(loss, leaves, list(rest[2:]))

    for one, other in zip(results(*apart), results(*given), strict=True):
        assert torch.equal(one, other)
