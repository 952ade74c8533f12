"""Ahead-of-time compilation: what every kernel takes of an architecture, read from its module. Needs no GPU."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Binary, Target, Tile
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.errors import BackendError, UsageError
from refusion_edge.export.targets import cubins
from refusion_edge.export.targets.cubins import assemble, compile_targets, dump, require_assembler, resources
from refusion_edge.export.targets.plugins import compile_plugins, plugin_kernels
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, fast_kernels
from refusion_edge.kernels.gpu.schedule import make_schedule
from refusion_edge.machine import ARCHITECTURES, parse_architectures
from refusion_edge.network.fast import FastLayout
from tests.conftest import ROOT
from tests.raising import raises

# One architecture in every run; all of them by `make test-architectures`, which takes some minutes for each.
CHOSEN = parse_architectures(os.environ.get("REFUSION_EDGE_ARCHITECTURES", "sm_87"))

# What a function gets without asking, which nobody says TensorRT does for its plugins, and what it gets at most on sm_86.
SHARED_KIB = {"plugin": 48, "other": 99}
# Loads from and stores to local memory: 8 for sm_87, 10 for sm_90. With Triton 3.9, these kernels have none.
SPILLED_BY_TRITON_36 = {"fusion_gate_0": 10, "fusion_gate_1": 10}
WITHOUT_PRODUCTS = ("stem", "encoder_mixing", "decoder_mixing", "to_plane", "stretch")


FAST = fast_kernels(FastLayout())


@functools.cache
def compiled(architecture: int) -> Target:
    """The kernels of the paper's network for an architecture, compiled once."""
    return compile_targets([architecture], jobs=2)[architecture]


@functools.cache
def compiled_fast(architecture: int) -> Target:
    """The kernels of the network fast, in the layout of its weights in the package, compiled once."""
    return compile_targets([architecture], jobs=2, kernels=FAST)[architecture]


def is_triton_36() -> bool:
    return importlib.metadata.version("triton").startswith("3.6.")


def why_not(architecture: int) -> str:
    """Why the assembler that came with Triton cannot be used; a test of its own holds it to this."""
    try:
        require_assembler([architecture])
    except BackendError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_every_kernel_compiles_and_fits(architecture: int) -> None:
    if reason := why_not(architecture):
        pytest.skip(reason)
    target = compiled(architecture)
    schedule = make_schedule()
    assert target.binaries.keys() == schedule.kernels.keys()
    assert target.driver_version in (12000, 13000)
    for name, binary in target.binaries.items():
        taken = resources(binary)
        assert binary.image.startswith(b"\x7fELF"), name
        assert binary.symbol == f"{schedule.kernels[name].source}_kernel", name
        assert binary.hidden_pointers == 2, name
        assert 0 < taken.registers <= 255, name
        assert taken.spilled <= (SPILLED_BY_TRITON_36.get(name, 0) if is_triton_36() else 0), name
        assert taken.shared_bytes <= SHARED_KIB["plugin" if name in plugin_kernels() else "other"] * 1024, name
        assert (taken.tensor_core > 0) == (name not in WITHOUT_PRODUCTS), name
        assert len(binary.image) < 150_000, name


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_every_kernel_of_the_network_fast_compiles_and_fits(architecture: int) -> None:
    if reason := why_not(architecture):
        pytest.skip(reason)
    target = compiled_fast(architecture)
    assert target.tiles == FAST.tiles(architecture)
    assert list(target.binaries) == ["fast_statistics", "fast_convolutions", "stretch"]
    for name, binary in target.binaries.items():
        taken = resources(binary)
        assert binary.symbol == f"{name}_kernel", name
        assert 0 < taken.registers <= 255, name
        assert taken.spilled == 0, name
        assert taken.shared_bytes <= SHARED_KIB["other"] * 1024, name
        assert (taken.tensor_core > 0) == (name == "fast_convolutions"), name
        assert len(binary.image) < 150_000, name
    # One layer loads what other threads have stored in the layer before.
    after = after_walks(dump(target.binaries["fast_convolutions"], "-sass"))
    assert len(after) == FastLayout().convolutions
    assert all(found[0] == "BAR" for found in after[:-1]), after


def after_walks(code: str) -> list[list[str]]:
    """Loads, stores and barriers after each loop over rows, in order, up to the next one."""
    instruction = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]+)([^;]*);")
    found: list[list[str]] = []
    stored = False
    for address, name, rest in instruction.findall(code):
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name == "BRA" and target and int(target[1], 16) < int(address, 16):
            if stored:  # not the loops over strips that the kernel begins with
                found.append([])
            stored = False
        elif name in ("LDG", "STG", "BAR"):
            stored |= name == "STG"
            if found:
                found[-1].append(name)
    return found


@pytest.mark.slow
def test_a_program_for_all_of_them_is_small(random_state: State) -> None:
    targets = {architecture: compiled(architecture) for architecture in CHOSEN if not why_not(architecture)}
    program = assemble(fold(random_state), {"task": "medical"}, targets)
    # Weights and manifest, and what the kernels of one architecture come to when they are compressed.
    assert len(program_bytes(program)) <= 750_000 + 200_000 * len(targets) <= 2_150_000


# In a process of its own, because in this one Triton interprets.
COMPILE_LOSS = """
import sys
from refusion_edge.export.targets.compiler import compile_function, prepare_compiler
prepare_compiler()
from refusion_edge.export.targets.cubins import resources
from refusion_edge.kernels.gpu import weighted_loss
from refusion_edge.cuda.program import Tile
numbers = {"height": "i32", "width": "i32", "coefficient": "fp32", "scale": "fp32"}
for kernel in (weighted_loss.weighted_loss_kernel, weighted_loss.second_order_kernel):
    types = {name: numbers.get(name, "*fp32") for name in kernel.arg_names if not name.isupper()}
    constants = {"TERM": 1, "NORM": 0, "TILE": 128, "HAS_F": True, "HAS_W": True, "HAS_V": True}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    binary, _ = compile_function(kernel, types, constants, Tile(128, 1, 4), int(sys.argv[1]))
    print(resources(binary).registers, resources(binary).spilled)
"""


@pytest.mark.slow
def test_the_loss_kernels_compile_without_spilling() -> None:
    pytest.importorskip("torch", reason="training needs torch")
    if reason := why_not(CHOSEN[0]):
        pytest.skip(reason)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", COMPILE_LOSS, str(CHOSEN[0])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    taken = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(taken) == 2
    assert all(registers <= 255 and spilled == 0 for registers, spilled in taken)


def test_a_kernel_that_does_not_compile_is_an_error() -> None:
    schedule = make_schedule()
    kernel = schedule.kernels["stretch"]
    broken = type(kernel)("stretch", "stretch", kernel.parameters[:-1], {}, "strips", 1)
    kernels = dataclasses.replace(REFUSION, schedule=lambda _: type(schedule)({"stretch": broken}, {}, ()))
    with raises(BackendError, "stretch for sm_87", remedy="Triton"):
        compile_targets([87], kernels=kernels)


@pytest.mark.parametrize("compile_something", [lambda: compile_targets([87, 110]), lambda: compile_plugins(110, 90)])
def test_an_assembler_that_is_too_old_is_named_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch, compile_something: Callable[[], object]
) -> None:
    nvidia = importlib.import_module("triton.backends.nvidia.compiler")
    monkeypatch.setattr(nvidia, "get_ptxas", lambda _: SimpleNamespace(version="12.9"))
    monkeypatch.setattr(cubins, "ProcessPoolExecutor", None)
    with raises(BackendError, "sm_110", expected="13.0", got="12.9"):
        compile_something()
    require_assembler([80, 86, 87, 89, 90, 120])
    monkeypatch.setattr(nvidia, "get_ptxas", lambda _: SimpleNamespace(version="13.0"))
    require_assembler(ARCHITECTURES)


def test_a_module_that_the_disassembler_does_not_know_is_explained_and_another_one_can_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = Binary("stem_kernel", Tile(16, 16, 1), 0, 2, b"no module")
    with raises(BackendError, remedy="TRITON_CUOBJDUMP_PATH"):
        resources(binary)
    newer = tmp_path / "cuobjdump"
    newer.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 99.0, REG:7'\n")
    newer.chmod(0o755)
    monkeypatch.setenv("TRITON_CUOBJDUMP_PATH", str(newer))
    assert resources(binary).registers == 7


def test_an_architecture_that_is_unknown_is_refused() -> None:
    assert parse_architectures("sm_87, sm_110,sm_87") == (87, 110)
    assert set(CHOSEN) <= set(ARCHITECTURES)
    for text in ("", "sm_88", "87", "sm_87;sm_90", "sm_٨٧"):
        with raises(UsageError, remedy="sm_87", got=text.split(",")[0]):
            parse_architectures(text)


def test_without_triton_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubins, "TRITON_INSTALLED", False)
    with raises(BackendError, "Triton", remedy="pip install 'refusion-edge[triton]'"):
        compile_targets([87])
