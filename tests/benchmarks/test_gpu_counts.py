"""What the model of the frame time counts, against counts by hand on three kernels."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from benchmarks.gpu_cases import make_case
from benchmarks.gpu_counts import FIELDS, LaunchCounts, at, line, whole_strips
from refusion_edge.arrays import State
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.counters import Counters, count
from refusion_edge.kernels.gpu.attention_statistics import partial_size
from refusion_edge.kernels.gpu.folding import FoldedWeights, fold
from refusion_edge.kernels.gpu.schedule import tiles
from tests.kernels.emulator.launches import decoded, run_case

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

# Two strips across and two down, of 64x32 pixels.
ROWS = 32
SIZE = HEIGHT, WIDTH = 2 * ROWS, 128
PIXELS, STRIPS = HEIGHT * WIDTH, 4
SECTOR = 32


@pytest.fixture(scope="module")
def folded(random_state: State) -> FoldedWeights:
    return fold(random_state)


def counted(folded: FoldedWeights, name: str) -> tuple[Counters, str]:
    kernel, binary = decoded(87, name)
    outcome = run_case(make_case(name, SIZE, "float16", folded, tiles(87)), kernel, binary, check=False)
    return count([outcome.result]), binary.image.decode()


def issued(text: str, pattern: str) -> int:
    """Times that a warp issues what matches: each line once, and those in the one loop over rows as often as it has turns."""
    (loop,) = re.finditer(r"^(\$L\w+):.*?\bbra(?:\.uni)? \t\1;", text, re.MULTILINE | re.DOTALL)
    inside = len(re.findall(pattern, loop[0]))
    return len(re.findall(pattern, text)) - inside + ROWS * inside


def test_a_convolution_is_counted_as_by_hand(folded: FoldedWeights) -> None:
    counters, text = counted(folded, "encoder_apply")
    streams, channels, warps = 2, 16, 2
    # Nine taps of 16x16, once more than there are rows; and 16 channels of two bytes that are written once.
    assert counters.tensor_products == streams * PIXELS * 9 * channels * channels * (ROWS + 1) / ROWS
    assert counters.global_bytes_written == streams * PIXELS * channels * 2
    assert counters.sectors_written == counters.sectors_written_once == streams * PIXELS * channels * 2 // SECTOR
    # The features, and 9 x 16 x 16 taps, gain and bias for each stream.
    read = streams * (PIXELS * channels * 2 + 9 * channels * channels * 2 + 2 * channels * 4)
    assert counters.sectors_read_once == pytest.approx(read / SECTOR, rel=0.01)
    # A second count of shared memory, in the text of the kernel: an 8x8 matrix of halves is a wavefront of 128 bytes.
    programs = streams * STRIPS * warps
    matrices = sum(number * issued(text, rf"ldmatrix\.sync\.aligned\.m8n8\.x{number}\b") for number in (1, 2, 4))
    others = counters.shared_wavefronts - programs * matrices
    # What else there is: stores of 16 bytes a lane, four wavefronts each, and of 8 and 4 bytes, in both directions.
    widths = {4: r"st\.shared\.v4\.b32", 2: r"(?:st|ld)\.shared\.v2\.b32", 1: r"(?:st|ld)\.shared\.b32"}
    assert others == programs * sum(wavefronts * issued(text, pattern) for wavefronts, pattern in widths.items())
    # Every row becomes an operand once at each of three shifts, though it is part of three sums, and so does what is stored: a
    # load for every 16 pixels, of which a warp has 32.
    assert issued(text, r"ldmatrix\.sync\.aligned\.m8n8\.x4\.shared") == 2 * (3 * (ROWS + 2) + ROWS)
    assert counters.shared_wavefronts == counters.shared_wavefronts_least
    assert counters.barriers == programs * issued(text, r"bar\.sync")


def test_the_last_convolution_is_counted_as_by_hand(folded: FoldedWeights) -> None:
    counters, _ = counted(folded, "to_plane")
    assert counters.tensor_products == 0
    # A float32 for each pixel, and the extremes of each strip.
    assert counters.global_bytes_written == PIXELS * 4 + STRIPS * 2 * 4
    # The strip itself, and one row and one column of each neighbor, where there is one.
    features = PIXELS * 16 * 2 / SECTOR
    assert features <= counters.sectors_read_once <= 1.02 * features
    assert counters.ctas == STRIPS


def test_a_walk_over_strips_is_counted_as_by_hand(folded: FoldedWeights) -> None:
    counters, _ = counted(folded, "encoder_mixing")
    streams, channels = 2, 16
    assert counters.ctas == streams
    assert counters.global_bytes_written == streams * 9 * channels * channels * 2
    partial = streams * STRIPS * partial_size(channels) * 4
    # The partial sums, and the matrices that attention is folded into: taps of the values, and the projection.
    assert counters.sectors_read_once * SECTOR >= partial + streams * (9 * channels * channels + channels * channels) * 2
    assert counters.sectors_read_once * SECTOR <= 2 * (partial + streams * 10 * channels * channels * 4)


def test_two_sizes_make_a_line() -> None:
    small, large = (LaunchCounts(**dict.fromkeys(FIELDS, 7 + 3.0 * pixels)) for pixels in (100, 200))
    found = line(small, large, 100, 200)
    assert found == {name: [pytest.approx(7), pytest.approx(3)] for name in FIELDS}
    assert at(found, 1000) == LaunchCounts(*[pytest.approx(3007)] * len(FIELDS))


@pytest.mark.parametrize("architecture", [80, 86, 87, 89, 90, 110, 120])
def test_the_sizes_are_whole_strips_of_every_kernel(architecture: int) -> None:
    for height, width in whole_strips(tiles(architecture)):
        assert all(height % tile.rows == width % tile.columns == 0 for tile in tiles(architecture).values())
