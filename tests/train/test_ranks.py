"""Two gloo processes against one process on the joined batch, and what happens when one of them dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
PATIENCE_S = 600

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


@contextlib.contextmanager
def elastic(words: list[str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start ranks by torchrun, as its users do."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        launcher, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # it ends its ranks, too


def rank_below(launcher: int, rank: int) -> int | None:
    """Process of a rank that a launcher started."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
    return None


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def steps_of(folder: str) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in find_checkpoints(Path(folder))]


def training(data: Path, output: str, *settings: str) -> list[str]:
    words = ["refusion_edge", "train", "--task", "ir_vis", "--data", str(data), "-o", output, "--device", "cpu"]
    words += ["--threads", "1", "--deterministic", "--auto-resume"]
    return words + [word for setting in (*SMALL[:-1], *settings) for word in ("--set", setting)]


# A rank that kills itself twice, as soon as all are connected; the other one loses it, and torchrun starts both again.
AGAIN = """
import os, signal, sys, time
import torch
from refusion_edge.errors import BackendError
from refusion_edge.train.process import join_ranks

started_s, attempt = time.monotonic(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
ranks = join_ranks(torch.device("cpu"))
assert ranks.largest([ranks.rank]) == [1.0]
os.write(1, b"joined %d %.3f\\n" % (attempt, time.monotonic() - started_s))  # in one piece, beside the other rank
if attempt < 2:
    if ranks.rank == attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        ranks.largest([0.0])
    except BackendError as error:
        sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_ranks_that_torchrun_starts_again_find_each_other() -> None:
    """And not the dead ones of the last attempt, whose addresses are still in torchrun's store."""
    Path("again.py").write_text(AGAIN)
    with elastic(["again.py"], "--max-restarts", "2") as launcher:
        output, _ = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0, output
    joined = re.findall(r"joined (\d) ([\d.]+)\n", output)
    assert sorted(int(attempt) for attempt, _ in joined) == [0, 0, 1, 1, 2, 2]
    assert max(float(took_s) for _, took_s in joined) < 240  # of the 300 after which gloo gives up


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_ends_with_the_same_bits(folder_of_pairs: Callable[..., Path]) -> None:
    from safetensors.torch import load_file

    data, settings = folder_of_pairs("data"), ("run.steps=12", "checkpoint.every=2")
    whole = start(["-m", *training(data, "whole", *settings)], 2, stdout=subprocess.DEVNULL)
    assert [process.wait(timeout=PATIENCE_S) for process in whole] == [0, 0]
    with elastic(["-m", *training(data, "run", *settings)], "--max-restarts", "1") as again:
        wait_for(lambda: [step for step in steps_of("run") if 0 < step < 10], again)
        killed = rank_below(again.pid, 1)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        output, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, output
    assert "resuming" in output
    one, other = (load_file(find_checkpoints(Path(name))[-1]) for name in ("whole", "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


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
