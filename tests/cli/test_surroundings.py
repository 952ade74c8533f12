"""Where a command cannot print, or has no folder any more: one line and exit code 4, whatever the verb."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refusion_edge.cli import VERBS
from tests.conftest import ROOT, one_sentence

# One process for all verbs of a test: starting one takes a second.
EVERY_VERB = f"""
import os, sys
from refusion_edge.cli import main
for verb in {VERBS!r}:
    child = os.fork()
    if not child:
        code = main([verb, *sys.argv[1:]])
        sys.exit(code)
    print(verb, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""


def run(shell: str, script: str | None = None, *, buffered: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which ``$RUN`` is the program, or the script."""
    Path("every.py").write_text(script or "from refusion_edge.cli import leave; leave()")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUN": f"{sys.executable} {Path('every.py').resolve()}"}
    environment["PYTHONUNBUFFERED"] = "" if buffered else "1"
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300, check=False, env=environment)


def verdicts(lines: list[str]) -> dict[str, int]:
    return {verb: int(code) for verb, code in (line.split() for line in lines if line.split()[0] in VERBS)}


@pytest.mark.parametrize("output", [">&-", ">/dev/full"])
def test_every_verb_without_standard_output(output: str) -> None:
    found = run(f"$RUN --help {output}", EVERY_VERB)
    lines = found.stderr.splitlines()
    assert verdicts(lines) == dict.fromkeys(VERBS, 4)
    assert len(lines) == 2 * len(VERBS), found.stderr


@pytest.mark.parametrize("words", ["doctor", "doctor --json -", "doctor --json /dev/stdout", "--version", "--help"])
@pytest.mark.parametrize("output", [">&-", ">/dev/full"])
@pytest.mark.parametrize("buffered", [True, False])
def test_results_that_cannot_be_printed(words: str, output: str, buffered: bool) -> None:
    found = run(f"$RUN {words} {output}", buffered=buffered)
    assert found.returncode == 4
    assert one_sentence(found.stderr)


def test_nothing_at_all_is_open() -> None:
    found = run("$RUN doctor >&- 2>&-")
    assert (found.returncode, found.stdout, found.stderr) == (4, "", "")


def test_a_reader_that_has_gone_is_no_error() -> None:
    found = run("$RUN bench --help | true; exit ${PIPESTATUS[0]}")
    assert (found.returncode, found.stderr) == (0, "")


def test_a_folder_that_was_removed() -> None:
    removed = "mkdir gone && cd gone && rmdir ../gone && $RUN"
    for words in ("doctor", "inspect x.rfx", "export --task medical -o x.safetensors", "fuse a b -o c --task ir_vis"):
        found = run(f"{removed} {words}")
        assert found.returncode == 4, words
        assert one_sentence(found.stderr.replace("shell-init: error", "")), found.stderr
    found = run(f"{removed} --version")
    assert found.returncode == 0
