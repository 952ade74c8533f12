"""The network in PyTorch: layout, parity with the official release, and properties that any weights must have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the network is defined in torch")

from refusion_edge.arrays import State
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.layers import channel_attention, layer_norm
from refusion_edge.network.model import FusionNetwork
from refusion_edge.network.parameters import PARAMETERS
from tests.conftest import TOLERANCE

TASKS = ("IVIF", "MIF", "MFIF", "MEIF")
GOLDEN = (
    *(f"{task}_crop_{size}" for task in TASKS for size in ("97x131", "64x200", "45x63_acts")),
    "IVIF_case_00710N",
    "IVIF_case_00906N",
    "MIF_case_MRI_PET_14",
    "MIF_case_MRI_PET_37",
    "MFIF_case_14",
    "MFIF_case_5",
    "MEIF_case_AirBellowsGap",
    "MEIF_case_ICCV_03",
)


def load_network(state: State, dtype: torch.dtype = torch.float32) -> FusionNetwork:
    network = FusionNetwork().eval().to(dtype)
    network.load_state_dict({name: torch.from_numpy(array.copy()).to(dtype) for name, array in state.items()})
    return network


def test_names_and_shapes_are_those_of_the_table() -> None:
    state = FusionNetwork().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == PARAMETERS
    assert list(state) == list(PARAMETERS)
    assert sum(tensor.numel() for tensor in state.values()) == 59_856


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_output_equals_the_official_release(shared_data: Path, name: str) -> None:
    task = name.split("_", maxsplit=1)[0]
    network = load_network(read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state)
    golden = np.load(shared_data / f"reference/golden/{name}.npz")
    sources = torch.from_numpy(golden["input"])
    with torch.inference_mode():
        fused = network(sources[:, :1], sources[:, 1:]).numpy()
    assert np.abs(fused - golden["raw"]).max() <= TOLERANCE["golden"]


@pytest.mark.parametrize("task", TASKS)
def test_activations_equal_the_official_release(shared_data: Path, task: str) -> None:
    network = load_network(read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state)
    golden = np.load(shared_data / f"reference/golden/{task}_crop_45x63_acts.npz")
    expected = {key.removeprefix("act_"): golden[key] for key in golden.files if key.startswith("act_")}
    assert len(expected) == 6
    seen: dict[str, np.ndarray] = {}
    modules = {name.replace(".", "_"): module for name, module in network.named_modules()}
    for name in expected:
        modules[name].register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output.numpy()))
    sources = torch.from_numpy(golden["input"])
    with torch.inference_mode():
        network(sources[:, :1], sources[:, 1:])
    for name, activation in expected.items():
        # Activations are not confined to [0, 1]; the tolerance follows their size.
        scale = max(1.0, float(np.abs(activation).max()))
        assert np.abs(seen[name] - activation).max() <= TOLERANCE["golden"] * scale, name


@pytest.mark.parametrize("size_hw", [(8, 8), (8, 31), (45, 9), (33, 64)])
def test_single_precision_is_close_to_double(random_state: State, size_hw: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 1, *size_hw, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.inference_mode():
        double = load_network(random_state, torch.float64)(a, b)
        single = load_network(random_state)(a.float(), b.float())
    assert single.shape == (2, 1, *size_hw)
    assert double.std() > 0.05  # a saturated output would agree with anything
    assert (single - double).abs().max() <= TOLERANCE["fp32"]


def test_images_of_a_batch_do_not_influence_each_other(random_state: State) -> None:
    network = load_network(random_state, torch.float64)
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.rand(3, 1, 17, 23, generator=generator, dtype=torch.float64) for _ in range(2))
    with torch.inference_mode():
        together = network(a, b)
        alone = torch.cat([network(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    assert (together - alone).abs().max() <= 1e-12


def attention_by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Channel attention as the paper writes it: normalise, multiply, softmax, one head after the other."""
    fused = torch.empty_like(v)
    dim = v.shape[1] // temperature.shape[0]
    for picture in range(v.shape[0]):
        for head in range(temperature.shape[0]):
            part = slice(head * dim, (head + 1) * dim)
            queries, keys, values = (x[picture, part].flatten(1) for x in (q, k, v))
            queries = queries / queries.norm(dim=1, keepdim=True).clamp(min=1e-12)
            keys = keys / keys.norm(dim=1, keepdim=True).clamp(min=1e-12)
            weights = torch.softmax(queries @ keys.T * temperature[head], dim=1)
            fused[picture, part] = (weights @ values).reshape(dim, *v.shape[2:])
    return fused


@pytest.mark.parametrize("channels", [16, 32])
@pytest.mark.parametrize("scale", [1.0, 1e3, 0.0])
def test_channel_attention_follows_its_definition(channels: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, channels, 7, 9, generator=generator, dtype=torch.float64) * scale for _ in range(3))
    temperature = torch.rand(8, 1, 1, generator=generator, dtype=torch.float64) * 3
    expected = attention_by_definition(q, k, v, temperature)
    assert torch.allclose(channel_attention(q, k, v, temperature), expected, rtol=1e-10, atol=1e-12)


def test_channel_attention_in_half_precision_does_not_overflow() -> None:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, 16, 64, 64, generator=generator, dtype=torch.float64) * 30 for _ in range(3))
    assert (q * q).sum(dim=(2, 3)).max() > 65504  # what half precision could not hold
    temperature = torch.ones(8, 1, 1, dtype=torch.float64)
    expected = attention_by_definition(q, k, v, temperature)
    half = channel_attention(q.half(), k.half(), v.half(), temperature.half())
    assert half.dtype == torch.float16
    assert (half.double() - expected).abs().max() <= 0.15  # values reach 100, where half precision steps by 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layer_norm_equals_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 16, 5, 7, generator=generator) * 200
    weight, bias = torch.rand(16, generator=generator), torch.randn(16, generator=generator)
    expected = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (16,), weight, bias, 1e-5).permute(0, 3, 1, 2)
    normalised = layer_norm(x.to(dtype), weight.to(dtype), bias.to(dtype))
    assert normalised.dtype == dtype
    assert (normalised.float() - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2)


def test_gradients_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, 16, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3))
    temperature = torch.rand(8, 1, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(channel_attention, (q, k, v, temperature))
    weight, bias = (torch.rand(16, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(layer_norm, (q, weight, bias))


def test_a_black_source_has_gradients() -> None:
    """All features of a black image are zero at first, and a root has no slope at zero."""
    torch.manual_seed(0)
    network = FusionNetwork()
    generator = torch.Generator().manual_seed(8)
    picture, black = torch.rand(1, 1, 12, 12, generator=generator), torch.zeros(1, 1, 12, 12)
    for a, b in ((picture, black), (black, picture), (black, black)):
        network.zero_grad()
        torch.autograd.backward(network(a, b).square().mean())
        assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
