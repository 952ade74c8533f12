"""Every kernel of the network by itself: its PTX in the emulator against its float64 reference, between guarded buffers."""

from __future__ import annotations

import functools
from typing import Any

import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from benchmarks.gpu_cases import RELATIVE_ERROR, Case, make_case
from refusion_edge.cuda.program import Binary
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.decoder import DecodedKernel
from refusion_edge.kernels.emulator.launch import MOST_SHARED_BYTES
from refusion_edge.kernels.gpu.folding import FoldedWeights
from refusion_edge.kernels.gpu.schedule import make_schedule, tiles
from refusion_edge.kernels.gpu.simulated_device import DeviceMisuseError
from tests.kernels.emulator.launches import (
    CHOSEN,
    FAST,
    FAST_LAYOUT,
    QUICK,
    Outcome,
    decoded,
    fast_state,
    run_case,
    same_outputs,
    why_not,
)

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

KERNELS = tuple(make_schedule().kernels)
QUICK_OR_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KERNELS]
FAST_KERNELS = tuple(FAST.schedule("float16").kernels)
# An odd size over several strips, one below a strip, a single row.
SIZES = ((35, 70), (3, 5), (1, 33))


def case_of(folded: FoldedWeights, architecture: int, name: str, size_hw: tuple[int, int]) -> Case:
    return make_case(name, size_hw, "float16", folded, tiles(architecture), seed=sum(size_hw))


def require(architecture: int) -> None:
    if reason := why_not(architecture):
        pytest.skip(reason)


def check(case: Case, kernel: DecodedKernel, binary: Binary, **options: Any) -> Outcome:
    outcome = run_case(case, kernel, binary, **options)
    assert not outcome.faults, [str(fault) for fault in outcome.faults]
    # Scratch memory is as large as the largest tile of any architecture needs.
    assert outcome.unwritten.keys() <= {"scratch_ptr"}
    # Six layers in a row round more often than one.
    assert outcome.error <= (2 if case.kernel.name == "fast_convolutions" else 1) * RELATIVE_ERROR["float16"]
    return outcome


@pytest.mark.parametrize("name", QUICK_OR_SLOW)
def test_a_kernel_is_right_and_nothing_is_found(folded: FoldedWeights, name: str) -> None:
    for size_hw in SIZES:
        check(case_of(folded, 87, name, size_hw), *decoded(87, name))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [one for one in CHOSEN if one != 87])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_of_every_architecture_is_right_and_nothing_is_found(
    folded: FoldedWeights, architecture: int, name: str
) -> None:
    require(architecture)
    for size_hw in SIZES:
        check(case_of(folded, architecture, name, size_hw), *decoded(architecture, name))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
@pytest.mark.parametrize("name", FAST_KERNELS)
def test_a_kernel_of_the_network_fast_is_right_and_nothing_is_found(architecture: int, name: str) -> None:
    require(architecture)
    folded, cut = FAST.fold(fast_state(FAST_LAYOUT)), FAST.tiles(architecture)
    for size_hw in ((19, 70), (8, 9), (61, 131)):
        case = make_case(name, size_hw, "float16", folded, cut, seed=sum(size_hw), kernels=FAST)
        check(case, *decoded(architecture, name, FAST))


@pytest.mark.parametrize("name", ["encoder_apply", "decoder_mixing", "to_plane"])
def test_the_order_of_warps_and_strips_changes_no_bit(folded: FoldedWeights, name: str) -> None:
    kernel, binary = decoded(87, name)
    case = case_of(folded, 87, name, (19, 70))
    forward, backward = run_case(case, kernel, binary), run_case(case, kernel, binary, backward=True)
    assert not backward.faults
    assert same_outputs(forward.outputs, backward.outputs)
    assert (forward.result.counts == backward.result.counts).all()


def test_the_counters_do_not_depend_on_the_checker(folded: FoldedWeights) -> None:
    kernel, binary = decoded(87, "encoder_apply")
    case = case_of(folded, 87, "encoder_apply", (19, 70))
    checked, unchecked = run_case(case, kernel, binary), run_case(case, kernel, binary, check=False)
    assert same_outputs(checked.outputs, unchecked.outputs)
    assert (checked.result.counts == unchecked.result.counts).all()
    assert (checked.result.traffic == unchecked.result.traffic).all()


@pytest.mark.parametrize("name", QUICK_OR_SLOW)
def test_a_kernel_is_decoded_with_every_line_of_code(name: str) -> None:
    kernel, binary = decoded(87, name)
    text = binary.image.decode()
    # Each statement ends with a semicolon, and so do the declarations of registers.
    body = text[text.index(".reqntid") :]
    code = [line for line in body.split("\n") if ";" in line and not line.strip().startswith((".reg", "//"))]
    assert len(kernel.opcodes) == len(code), name


@functools.cache
def wrong_launches() -> dict[str, dict[str, object]]:
    most = MOST_SHARED_BYTES[87] * 1024
    return {
        "too few threads": {"threads": 32},
        "no CTAs": {"grid": (0, 1, 1)},
        "too many CTAs": {"grid": (1, 65536, 1)},
        "too many CTAs in all": {"grid": (65536, 65535, 1)},
        "too much shared memory": {"shared_bytes": most + 1},
        "negative shared memory": {"shared_bytes": -1},
        "too few arguments": {"block": bytes(40)},
        "too many arguments": {"block": bytes(200)},
    }


@pytest.mark.parametrize("name", wrong_launches())
def test_a_launch_that_does_not_fit_the_kernel_is_refused(folded: FoldedWeights, name: str) -> None:
    kernel, binary = decoded(87, "encoder_apply")
    with pytest.raises(DeviceMisuseError) as caught:
        run_case(case_of(folded, 87, "encoder_apply", (3, 5)), kernel, binary, **wrong_launches()[name])
    assert caught.value.expected != caught.value.got
    assert "\n" not in str(caught.value)
