"""The timings of the GPU benchmark with torch: whole frames, every launch, the loss, and other tiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_cases import RELATIVE_ERROR, largest_error, launch, make_case
from benchmarks.gpu_checks import TERMS, loss_to_second_order
from benchmarks.gpu_clock import Ceilings, count_kernels, medians_ms, recorded
from benchmarks.kernel_work import frame_work, least_ms
from benchmarks.official_layout import official_fuse
from refusion_edge.arrays import Array, State
from refusion_edge.cuda.program import Schedule, Tile, lay_out
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.kernels.gpu.schedule import PLANES, make_schedule
from refusion_edge.kernels.gpu.triton_frame import Frame, prepare

Row = dict[str, Any]

OURS = "ours, Triton, one graph"
_COLUMNS, _ROWS, _WARPS = (32, 64, 128), (8, 16, 32), (2, 4, 8)


def ready_frame(state: State, tiles: Mapping[str, Tile], planes: Array, device: str) -> Frame:
    """Prepare a frame in half precision, with sources.

    Args:
        state: The 86 parameters.
        tiles: Tile of every kernel.
        planes: (2, H, W) float32.
        device: Torch's name of the device.
    """
    weights = fold(state).rounded(np.dtype(np.float16))
    height, width = planes.shape[1:]
    frame = prepare(make_schedule(), weights, tiles, (height, width), torch.device(device))
    frame.buffers[PLANES].copy_(torch.from_numpy(planes.ravel()))
    return frame


def time_frames(state: State, tiles: Mapping[str, Tile], planes: Array, rounds: int, ceilings: Ceilings) -> Iterator[Row]:
    """Time whole frames in turns: the official sequence as it is, compiled in half precision, and ours.

    Args:
        state: The 86 parameters.
        tiles: Tile of every kernel.
        planes: (2, H, W) float32.
        rounds: Rounds that count.
        ceilings: What the device reaches.
    """
    frame = ready_frame(state, tiles, planes, "cuda")
    works: dict[str, Callable[[], object]] = {OURS: recorded(frame.run)}
    single = {name: torch.from_numpy(array).cuda() for name, array in state.items()}
    half = {name: tensor.half() for name, tensor in single.items()}
    a, b = (torch.from_numpy(plane)[None, None].cuda() for plane in planes)
    # For this very size; by itself it compiles the second size that it meets for any.
    compiled = torch.compile(official_fuse, dynamic=False)

    def official(
        parameters: Mapping[str, torch.Tensor], fuse: Callable[..., object], dtype: torch.dtype
    ) -> Callable[[], object]:
        sources = a.to(dtype), b.to(dtype)

        def work() -> object:
            with torch.inference_mode():
                return fuse(parameters, *sources)

        return work

    works["official, torch eager fp32"] = official(single, official_fuse, torch.float32)
    works["official, torch eager fp16"] = official(half, official_fuse, torch.float16)
    works["official, torch.compile fp16"] = official(half, compiled, torch.float16)
    found = medians_ms(works, rounds)
    size_hw = planes.shape[1], planes.shape[2]
    least = roofline_ms(frame.schedule, state, size_hw, ceilings)
    scratch = lay_out(frame.schedule.buffers.values(), size_hw, tiles).size
    for name, time_ms in found.items():
        row = {"name": name, "size_hw": list(size_hw), "ms": time_ms, "beside_ours": time_ms / found[OURS]}
        yield {**row, "roofline_ms": least, "scratch_bytes": scratch} if name == OURS else row


def roofline_ms(schedule: Schedule, state: State, size_hw: tuple[int, int], ceilings: Ceilings) -> float:
    """Time that a frame takes at least, launch by launch, at the measured rates."""
    works = frame_work(schedule, fold(state).rounded(np.dtype(np.float16)))
    pixels = size_hw[0] * size_hw[1]
    return sum(least_ms(work, pixels, ceilings.bytes_per_s, ceilings.flops_per_s) for work in works)


def time_launches(state: State, tiles: Mapping[str, Tile], planes: Array, rounds: int, ceilings: Ceilings) -> Iterator[Row]:
    """Time every kernel by itself, ten launches in a graph; small images stay in the cache of the device meanwhile."""
    frame = ready_frame(state, tiles, planes, "cuda")
    frame.run()
    works = dict(
        zip(frame.schedule.launches, frame_work(frame.schedule, fold(state).rounded(np.dtype(np.float16))), strict=True)
    )
    first = {launch.kernel: launch for launch in reversed(frame.schedule.launches)}
    graphs = {name: recorded(lambda launch=one: [frame.start(launch) for _ in range(10)]) for name, one in first.items()}
    found = medians_ms(graphs, rounds)
    for name, time_ms in found.items():
        work, tile = works[first[name]], tiles[name]
        least = least_ms(work, planes[0].size, ceilings.bytes_per_s, ceilings.flops_per_s)
        yield {
            "name": name, "size_hw": list(planes.shape[1:]), "ms": time_ms / 10, "roofline_ms": least,
            "bytes_per_pixel": work.bytes, "flops_per_pixel": work.flops,
            "launches": sum(launch.kernel == name for launch in frame.schedule.launches),
            "tile": [tile.columns, tile.rows, tile.warps],
        }  # fmt: skip


def time_loss(shape: tuple[int, int, int, int], rounds: int) -> Iterator[Row]:
    """Time the loss with gradient and second order, by the kernels and by torch's operations, and count their launches."""
    draw = torch.Generator().manual_seed(2)
    planes = [torch.rand(shape, generator=draw).cuda() for _ in range(8)]
    for term in TERMS:
        works = {
            "kernels": lambda term=term: loss_to_second_order(planes, term, "triton"),
            "torch operations": lambda term=term: loss_to_second_order(planes, term, "closed"),
        }
        found = medians_ms(works, rounds)
        for name, time_ms in found.items():
            yield {"name": f"{term}, {name}", "shape": list(shape), "ms": time_ms, "launches": count_kernels(works[name])}


def sweep_tiles(kernel_name: str, chosen: Tile) -> list[Tile]:
    """The tiles that a sweep tries for a kernel, the chosen one first."""
    others = (Tile(columns, rows, warps) for columns, rows, warps in itertools.product(_COLUMNS, _ROWS, _WARPS))
    # A kernel that runs once for each stream walks no strips.
    return [chosen] if kernel_name.endswith("mixing") else [chosen, *(tile for tile in others if tile != chosen)]


def time_sweep(state: State, tiles: Mapping[str, Tile], planes: Array, rounds: int, names: Sequence[str] = ()) -> Iterator[Row]:
    """Time kernels with other tiles; a tile that does not compile or computes wrongly is noted as such.

    Args:
        state: The 86 parameters.
        tiles: Tile of every kernel.
        planes: (2, H, W) float32.
        rounds: Rounds that count.
        names: Which kernels; empty for all.
    """
    folded = fold(state)
    for name in names or make_schedule().kernels:
        works, remarks = {}, {}
        for tile in sweep_tiles(name, tiles[name]):
            cut = {**tiles, name: tile}
            try:
                case = make_case(name, (37, 150), "float16", folded, cut)
                error = largest_error(case, launch(case, "cuda"))
                remarks[tile] = "" if error <= 2 * RELATIVE_ERROR["float16"] else f"wrong by {error:.1e}"
                frame = ready_frame(state, cut, planes, "cuda")
                one = next(one for one in frame.schedule.launches if one.kernel == name)
                works[tile] = recorded(lambda frame=frame, one=one: [frame.start(one) for _ in range(10)])
            except Exception as refused:  # whatever the compiler raises for a tile that is too large
                remarks[tile] = (str(refused).strip().splitlines() or [type(refused).__name__])[0]
        found = medians_ms({f"{tile}": work for tile, work in works.items()}, rounds)
        for tile, remark in remarks.items():
            time_ms = found[f"{tile}"] / 10 if tile in works else None
            row = {"name": name, "tile": [tile.columns, tile.rows, tile.warps], "ms": time_ms, "remark": remark}
            yield {**row, "chosen": tile == tiles[name]}
