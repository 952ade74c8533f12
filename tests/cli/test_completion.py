"""Tab completion in real shells: verbs, their options, and the values of options."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from refusion_edge.cli import VERBS, make_parser
from refusion_edge.cli.completion import read_verbs

RunCli = Callable[..., tuple[int, str, str]]

# What is typed, with the word to complete last; what must be offered, and what must not.
CASES = [
    (("st",), {"stream"}, {"fuse"}),
    (("help", "fu"), {"fuse"}, {"stream"}),
    (("stream", "--pol"), {"--policy", "--polarity"}, {"--rig"}),
    (("stream", "--policy", ""), {"nearest", "hold", "drop"}, {"white", "site.yaml"}),
    (("stream", "--config", "si"), {"site.yaml"}, {"--config"}),
    (("align", ""), {"auto", "time"}, {"site.yaml", "stream"}),
    (("align", "auto", "--vis-f"), {"--vis-fov"}, {"--rig"}),
    (("fuse", "two w"), {"two words.png"}, {"--task"}),
    (("completion", "z"), {"zsh"}, {"fish"}),
]
IN_BASH = """\
source completion
COMP_WORDS=(refusion-edge "$@")
COMP_CWORD=$#
_refusion_edge
printf '%s\\n' "${COMPREPLY[@]}"
"""
# The completion system of zsh runs only in a terminal; these are the functions that the script calls.
IN_ZSH = """\
_files() { print -l -- *(N) }
_describe() { print -l -- "${(@)${(P@)2}%%:*}" }
_arguments() {
    local spec name
    for spec in "$@"; do
        name="${${spec#\\*}%%\\[*}"
        if [[ $spec == *':value:('* && ${words[CURRENT-1]} == "$name" ]]; then print -l -- ${=${${spec##*:\\(}%\\)}}; return; fi
        if [[ $spec == *:value:_files && ${words[CURRENT-1]} == "$name" ]]; then _files; return; fi
    done
    for spec in "$@"; do
        if [[ $spec == '*:file:_files' ]]; then [[ -z $files ]] || _files; else print -r -- "${${spec#\\*}%%\\[*}"; fi
    done
}
words=(refusion-edge "$@")
CURRENT=${#words}
[[ $words[2] == fuse ]] && files=1
source ./completion
"""


def offered(shell: str, words: tuple[str, ...]) -> set[str]:
    if shell == "fish":
        typed = " ".join(["refusion-edge", *(word.replace(" ", "\\ ") for word in words)])
        command = ["fish", "--no-config", "-c", f"source completion; complete -C {typed!r}"]
    else:
        Path("script").write_text(IN_BASH if shell == "bash" else IN_ZSH)
        command = [shell, *(["-f"] if shell == "zsh" else ["--norc"]), "script", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    found = {re.sub(r"\\(.)", r"\1", line.partition("\t")[0]) for line in done.stdout.splitlines()}
    return {word for word in found if word.startswith(words[-1])}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_offers_what_fits(run_cli: RunCli, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    code, script, err = run_cli("completion", shell)
    assert (code, err) == (0, "")
    Path("completion").write_text(script)
    for name in ("site.yaml", "two words.png"):
        Path(name).touch()
    for words, wanted, unwanted in CASES:
        found = offered(shell, words)
        assert wanted <= found, (words, found)
        assert not unwanted & found, (words, found)


def test_every_option_of_every_verb_is_known() -> None:
    verbs = {verb.words: verb for verb in read_verbs(make_parser())}
    assert {words[0] for words in verbs if words} == set(VERBS)
    stream = {name: option for option in verbs["stream",].options for name in option.names}
    assert {"--config", "--ir", "-o", "--no-marks"} <= set(stream)
    assert "--pictures" not in stream
    assert stream["--range"].choices == ("smooth", "stretch", "fixed")
    assert (stream["--resize"].takes, stream["--rig"].takes) == (False, True)
    assert ("align", "auto") in verbs


def test_a_shell_without_completion_is_refused(run_cli: RunCli) -> None:
    code, _, err = run_cli("completion", "csh")
    assert (code, "bash" in err) == (2, True)
