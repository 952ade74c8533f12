"""Faults planted in the kernels and in their launches: the emulator has to see them."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet
from refusion_edge.kernels.gpu.schedule import make_schedule
from tests.kernels.emulator.launches import QUICK, SMALL, decoded, why_not
from tests.kernels.emulator.planted_faults import EXPLANATIONS, HOST_FAULTS, MUTATIONS, chosen, places, plant, plant_on_host

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

# Whether the result is wrong without a barrier is a matter of luck, so that the checker has to see every one. For sm_90, Triton
# writes some that are not needed.
ALWAYS_SEEN = {87: ("barrier removed", "barrier of a warp removed"), 90: ("barrier of a warp removed",)}


def table_of(
    architecture: int, most: int, names: tuple[str, ...] = (), kernels: KernelSet = REFUSION
) -> dict[str, Counter[str]]:
    table: dict[str, Counter[str]] = {}
    for name, label, place in chosen(architecture, most, names, kernels):
        seen = plant(architecture, name, label, place, kernels)
        table.setdefault(label, Counter())[seen] += 1
        where = f"{label} in {name} for sm_{architecture}, line {place.string.count(chr(10), 0, place.start()) + 1}"
        if label in ALWAYS_SEEN[architecture]:
            assert seen.startswith("checker"), where
        if seen in ("no effect", "missed"):
            assert label in EXPLANATIONS, where
    return table


def rate(table: dict[str, Counter[str]]) -> float:
    """Share of the faults with an effect that somebody sees."""
    total = sum(table.values(), Counter())
    effective = total.total() - total["no effect"]
    return 1 - total["missed"] / effective


@pytest.mark.slow
def test_faults_in_short_kernels_are_seen() -> None:
    table = table_of(87, 1, QUICK)
    assert sum(verdicts.total() for verdicts in table.values()) >= 25
    assert rate(table) == 1


@pytest.mark.parametrize("label", HOST_FAULTS)
def test_a_wrong_launch_is_seen(label: str) -> None:
    seen = plant_on_host(87, "encoder_apply", label)
    # A strip too many begins behind the image, where every access is guarded.
    assert seen == ("no effect" if label == "one strip too many" else "checker alone")


@pytest.mark.slow
def test_at_least_300_faults_are_planted_and_those_missed_are_explained() -> None:
    table = table_of(87, 2)
    assert sum(verdicts.total() for verdicts in table.values()) >= 300
    assert table.keys() == {label for label in MUTATIONS if places_anywhere(87, label)}
    assert rate(table) >= 0.97


@pytest.mark.slow
def test_faults_around_wgmma_are_seen() -> None:
    if reason := why_not(90):
        pytest.skip(reason)
    name = "fast_convolutions"
    text = decoded(90, name, SMALL)[1].image.decode()
    # Several products in a row need one wait behind the last and the fences in front of the first; the others are not needed.
    for label in ("wgmma not waited for", "fence of the proxy removed", "wgmma.fence removed"):
        seen = [plant(90, name, label, place, SMALL) for place in places(text, label)]
        assert any(one.startswith("checker") for one in seen), label
        assert {one for one in seen if not one.startswith("checker")} <= {"no effect"}, label
    assert rate(table_of(90, 1, (name,), SMALL)) == 1


def places_anywhere(architecture: int, label: str) -> bool:
    return any(places(decoded(architecture, name)[1].image.decode(), label) for name in make_schedule().kernels)
