"""The plugins for TensorRT: their PTX in the emulator, with the arguments in the order in which TensorRT passes them."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from benchmarks.gpu_cases import RELATIVE_ERROR, make_case
from refusion_edge.cuda.program import Binary
from refusion_edge.export.targets.compiler import plugin_order
from refusion_edge.export.targets.plugins import compile_plugins, plugin_kernels, plugin_tiles
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.decoder import decode
from refusion_edge.kernels.gpu.folding import FoldedWeights
from refusion_edge.kernels.gpu.schedule import tiles
from refusion_edge.kernels.gpu.simulated_device import DeviceMisuseError
from tests.kernels.emulator.launches import run_case, why_not

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

# With the oldest PTX of a driver that TensorRT with plugins runs on.
VERSIONS = {87: 85, 90: 80, 110: 90}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", VERSIONS)
def test_a_plugin_is_right_in_the_order_of_tensorrt(folded: FoldedWeights, architecture: int) -> None:
    if reason := why_not(architecture):
        pytest.skip(reason)
    cut = {**tiles(architecture), **plugin_tiles(architecture)}
    for name, plugin in compile_plugins(architecture, VERSIONS[architecture], jobs=2).items():
        kernel, order = decode(plugin.text), plugin_order(plugin_kernels()[name].parameters)
        binary = Binary(plugin.symbol, plugin.tile, plugin.shared_bytes, 0, plugin.text.encode())
        for size_hw in ((35, 70), (3, 5)):
            case = make_case(name, size_hw, "float16", folded, cut, seed=sum(size_hw))
            outcome = run_case(case, kernel, binary, order=order)
            assert not outcome.faults, (name, [str(fault) for fault in outcome.faults])
            assert not outcome.unwritten, name
            assert outcome.error <= RELATIVE_ERROR["float16"], name
        # The block of the back end `fused` is longer, by the hidden pointers.
        with pytest.raises(DeviceMisuseError):
            run_case(case, kernel, Binary(plugin.symbol, plugin.tile, plugin.shared_bytes, 2, b""))
