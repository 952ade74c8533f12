"""A few kills at random moments; ``python -m benchmarks.kills`` does two hundred."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_what_a_kill_leaves_is_sound_and_can_be_finished() -> None:
    words = ["-m", "benchmarks.kills", "--kills", "12", "--seed", "11", "--victims", "build,fuse,eval,record,ring"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished, and equal to the undisturbed run") == 5


@pytest.mark.slow
def test_training_that_was_killed_ends_with_the_same_bits() -> None:
    pytest.importorskip("torch", reason="training needs torch")
    words = ["-m", "benchmarks.kills", "--kills", "3", "--seed", "5", "--victims", "train"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: killed" in done.stdout
