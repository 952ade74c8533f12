"""The Dockerfiles: what they copy and install exists, and their steps are shell that parses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = sorted((ROOT / "examples/docker").glob("*.Dockerfile"))
KNOWN = {"ARG", "FROM", "SHELL", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_step_is_an_instruction_and_every_command_parses(path: Path) -> None:
    steps = instructions(path)
    assert {word for word, _ in steps} <= KNOWN
    assert next(word for word, _ in steps if word != "ARG") == "FROM"
    bash = shutil.which("bash")
    assert bash is not None
    commands = [rest for word, rest in steps if word == "RUN"]
    assert len(commands) >= 3
    for command in commands:
        done = subprocess.run([bash, "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert dict(steps)["USER"] != "root"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_extras_and_modules_that_are_named_exist(path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = path.read_text()
    named = re.findall(r"/src\[([\w,]+)\]", text) + re.findall(r"EXTRAS=([\w,]+)", text)
    assert named
    for names in named:
        assert set(names.split(",")) <= set(extras)
    for module in re.findall(r"python -m (refusion_edge[\w.]*)", text):
        assert (ROOT / module.replace(".", "/") / "__main__.py").is_file()
    known = (ROOT / ".ci/packages.txt").read_text().split()
    installed = re.search(r"--no-install-recommends (.+?) &&", re.sub(r"\\\n\s*", " ", text))
    assert installed is not None
    assert set(installed[1].split()) <= set(known)
    # Files that no image needs, and whose copies would hide what was built there.
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", "build", "**/*.so"} <= set(ignored)
