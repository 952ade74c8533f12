"""Two gloo processes against one process on the joined batch, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.errors import CheckpointError, UsageError
from refusion_edge.train.process import Ranks, join_ranks
from refusion_edge.train.session import _require_one_start
from refusion_edge.train.state import find_checkpoints, read_state
from tests.conftest import ROOT
from tests.raising import raises
from tests.train.conftest import SMALL

# How long to wait for a process on a machine that is busy with other things.
PATIENCE_S = 300

# One joined batch of four pairs, in one process or cut in two; the updates of a whole step in float64.
STEP = """
import sys
from functools import partial
import torch
from safetensors.torch import save_file
from refusion_edge.train.networks import fuse
from refusion_edge.train.meta import (
    Batch, FusionObjective, MetaRule, Networks, fusion_gradient, meta_gradient, reconstruction_gradient)
from refusion_edge.train.networks import ProposalSettings, propose
from refusion_edge.train.process import join_ranks, leave_ranks
from refusion_edge.train.networks import reconstruct
from refusion_edge.train.settings import resolve
from refusion_edge.train.state import initial_state

torch.set_num_threads(1)
ranks = join_ranks(torch.device("cpu"))
settings = resolve("default", "ir_vis", device="cpu", assignments=["proposal.zero=false"])
state = initial_state(settings, ranks.device, dtype=torch.float64)
networks = Networks(fuse, partial(propose, settings.proposal), reconstruct, fuse)
draw = torch.Generator().manual_seed(4)
part = slice(ranks.rank * 4 // ranks.size, (ranks.rank + 1) * 4 // ranks.size)
planes = [torch.rand(4, 1, 14, 14, generator=draw, dtype=torch.float64)[part] for _ in range(4)]
train, test = Batch.in_both_orders(*planes[:2]), Batch.in_both_orders(*planes[2:])
phi = {name: tensor.requires_grad_() for name, tensor in state.phi.items()}
objective, rule = FusionObjective("signed", 0.7), MetaRule("exact", 0.1, adapt_reconstruction=True)
weights = networks.propose(phi, *planes[:2])
fusion = fusion_gradient(networks, state.theta, train, weights, objective, ranks.average)
outer = meta_gradient(
    networks, state.theta, phi, state.rho, train, test, weights, fusion, objective, rule, ranks.average)
judged = reconstruction_gradient(networks, state.rho, fusion.fused, train, ranks.average)
found = {"fusion": fusion.gradient, "proposal": outer.gradient, "reconstruction": judged.gradient}
tensors = {f"{part}.{name}": tensor.contiguous() for part, group in found.items() for name, tensor in group.items()}
save_file(tensors, f"{sys.argv[1]}-{ranks.rank}.safetensors")
leave_ranks(ranks)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(words: list[str], ranks: int, **streams: object) -> list[subprocess.Popen[str]]:
    port = str(free_port())
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "WORLD_SIZE": str(ranks)}  # fmt: skip
    return [
        subprocess.Popen([sys.executable, *words], env={**common, "RANK": str(rank)}, text=True, **streams)  # type: ignore[call-overload]
        for rank in range(ranks)
    ]


@pytest.mark.slow
def test_two_ranks_equal_one_on_the_joined_batch() -> None:
    from safetensors.torch import load_file

    processes = start(["-c", STEP, "one"], 1) + start(["-c", STEP, "two"], 2)
    assert [process.wait(timeout=PATIENCE_S) for process in processes] == [0, 0, 0]
    one, first, second = (load_file(f"{name}.safetensors") for name in ("one-0", "two-0", "two-1"))
    assert {name.split(".")[0] for name in one} == {"fusion", "proposal", "reconstruction"}
    for group in ("fusion.", "proposal.", "reconstruction."):
        flat, flat_first, flat_second = (
            torch.cat([tensor.flatten() for name, tensor in sorted(part.items()) if name.startswith(group)])
            for part in (one, first, second)
        )
        assert torch.equal(flat_first, flat_second)
        assert flat.norm() > 0
        assert ((flat - flat_first).norm() / flat.norm()).item() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("fatal", [True, False], ids=["killed", "asked to stop"])
def test_a_lost_or_stopped_rank_ends_the_run_with_a_resumable_checkpoint(
    folder_of_pairs: Callable[..., Path], fatal: bool
) -> None:
    data = folder_of_pairs("data")
    words = ["-m", "refusion_edge", "train", "--task", "ir_vis", "--data", str(data), "-o", "run", "--device", "cpu"]
    words += [word for setting in (*SMALL, "run.steps=100000") for word in ("--set", setting)]
    processes = start(words, 2, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    log = Path("run/log.jsonl")
    while not log.is_file() or '"event": "step"' not in log.read_text():
        assert time.monotonic() < deadline, "the run did not begin"
        assert all(process.poll() is None for process in processes)
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGKILL if fatal else signal.SIGTERM)
    output, errors = processes[0].communicate(timeout=PATIENCE_S)
    processes[1].communicate(timeout=PATIENCE_S)
    assert processes[0].returncode == (3 if fatal else 130), errors
    if fatal:
        assert "one of 2 ranks" in errors
        assert "Traceback" not in errors
    else:
        assert "--resume run" in output
        assert processes[1].returncode == 130
    checkpoint = read_state(Path("run"))
    assert checkpoint.counters.step > 0
    assert len(find_checkpoints(Path("run"))) == 1
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.tensors.values())


def test_ranks_that_start_from_different_steps_are_refused() -> None:
    ranks = mock.Mock(largest=lambda values: [20.0, -10.0])
    with raises(CheckpointError, "10", "20", expected=20.0, got=10):
        _require_one_start(ranks, 10)


def test_one_rank_needs_no_group() -> None:
    tensors = {"x": torch.ones(2)}
    assert Ranks().average(tensors) is tensors
    assert Ranks().largest([1.0, 2.0]) == [1.0, 2.0]


def test_half_of_torchruns_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises(UsageError, "WORLD_SIZE", "RANK", remedy="torchrun"):
        join_ranks(torch.device("cpu"))
