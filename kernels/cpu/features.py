"""Training features, with the channels innermost, in the form that the compiled kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.errors import UsageError
from refusion_edge.kernels.cpu.compiled import ISA_VARIABLE, chosen_isa, load_module


def suits_kernels(*tensors: Tensor) -> bool:
    """Whether the compiled kernels are built and can take these tensors: fp32, on a CPU, without autocast."""
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.numel() > 0 for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and compiled_module() is not None
    )


def array(tensor: Tensor) -> Any:
    """NumPy's view of a tensor."""
    return tensor.detach().numpy()


def arrays(tensors: Sequence[Tensor]) -> list[Any]:
    """NumPy's views of tensors."""
    return [array(tensor) for tensor in tensors]


def even(x: Tensor) -> Tensor:
    """Features (B, ..., C) with consecutive channels and evenly spaced pixels; copied only if necessary."""
    *_, pixel, channel = x.stride()
    laid = channel == 1 and pixel >= x.shape[-1]
    step = pixel
    for count, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        laid = laid and stride == step
        step *= count
    return x if laid else x.contiguous()


def machine() -> dict[str, Any]:
    """Threads and instruction set, as keyword arguments of the kernels.

    Raises:
        UsageError: The environment asks for an instruction set that this processor lacks, or that does not compute in fp32.
    """
    return {"threads": torch.get_num_threads(), "isa": training_isa()}


# Looked up once: a step calls the kernels more than a hundred times.
@cache
def training_isa() -> str:
    """The instruction set that the environment asks for, if training can use it; empty for the fastest.

    Raises:
        UsageError: See ``machine``.
    """
    isa, usable = chosen_isa(), compiled_module().isas()
    if isa and isa not in usable:
        raise UsageError(
            f"{ISA_VARIABLE} is {isa!r}, which cannot be used for training here",
            f"set it to one of {', '.join(usable)}",
            expected=tuple(usable),
            got=isa,
        )
    return isa


@cache
def compiled_module() -> Any:
    """The compiled module, None where it is not built."""
    try:
        return load_module()
    except ImportError:
        return None


def pointwise(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """1x1 convolution, and the residual it is added to.

    Args:
        x: (B, H, W, C), floating.
        weight: (C', C, 1, 1).
        residual: (B, H, W, C'). The convolution must depend on whatever the residual depends on: see ``plus``.

    Returns:
        (B, H, W, C').
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        # oneDNN multiplies matrices as narrow as these faster than BLAS does. On one thread torch gives it a 1x1 kernel only
        # where that is dilated, which makes no difference to a 1x1 kernel.
        planes = F.conv2d(x.permute(0, 3, 1, 2), weight, dilation=2)
        return plus(planes, residual if residual is None else residual.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return plus(F.linear(x, weight.flatten(1)), residual)


def plus(change: Tensor, residual: Tensor | None) -> Tensor:
    """``change + residual`` in the memory of ``change``: new memory is cold, and costs more.

    ``change`` must be nobody else's, no view, whose gradient would be copied twice, and, for transforms of ``torch.func``,
    a function of all that the residual is a function of.
    """
    if residual is None:
        return change
    return change.add_(residual) if change.dtype == residual.dtype else change + residual
