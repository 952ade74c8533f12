"""``completion``: print a script that completes verbs, options and their values in a shell.

The script contains a table made from the parsers of all verbs, so completion does not start the program.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SUMMARY = "print a script for tab completion in bash, zsh or fish"
_PROGRAM = "refusion-edge"

_EPILOG = """\
bash:  refusion-edge completion bash > ~/.local/share/bash-completion/completions/refusion-edge
zsh:   refusion-edge completion zsh > "${fpath[1]}/_refusion-edge"
fish:  refusion-edge completion fish > ~/.config/fish/completions/refusion-edge.fish
"""


@dataclass(frozen=True, slots=True)
class Option:
    """An option.

    Attributes:
        names: Its spellings.
        help: What it does.
        takes: Whether it takes a value.
        choices: The values it can have; empty for any.
    """

    names: tuple[str, ...]
    help: str
    takes: bool
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb, or a subcommand of one.

    Attributes:
        words: The words after the program's name.
        help: What it does.
        options: Its options.
        ways: Words that can follow, with their meaning.
    """

    words: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    ways: Mapping[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``completion``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=tuple(_SCRIPTS), help="the shell")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    from refusion_edge.cli import make_parser

    print(_SCRIPTS[options.shell](tuple(read_verbs(make_parser()))), end="")
    return 0


def read_verbs(parser: argparse.ArgumentParser, words: tuple[str, ...] = (), text: str = "") -> Iterator[Verb]:
    """List a parser and all below it."""
    options, below = [], {}
    ways: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
            ways |= {choice.dest: choice.help or "" for choice in action._choices_actions}
        elif action.help is argparse.SUPPRESS:
            continue
        elif action.option_strings:
            choices = tuple(map(str, action.choices or ()))
            help_text = (action.help or "").replace("%%", "%").partition(" (default")[0]
            options.append(Option(tuple(action.option_strings), help_text, action.nargs != 0, choices))
        elif action.choices is not None:
            ways |= dict.fromkeys(map(str, action.choices), "")
    if not words:
        ways["help"] = "show the help of a verb"
    yield Verb(words, text, tuple(options), ways)
    for name, other in below.items():
        yield from read_verbs(other, (*words, name), ways[name])


def _bash(verbs: tuple[Verb, ...]) -> str:
    cases, values = [], []
    for verb in verbs:
        words = [name for option in verb.options for name in option.names]
        kind = "ways" if verb.ways else "files"
        cases.append(f"        '{' '.join(verb.words)}') kind={kind}; words='{' '.join([*verb.ways, *words])}' ;;")
        for option in verb.options:
            if option.takes:
                pattern = "|".join(f"'{' '.join([*verb.words, name])}'" for name in option.names)
                kind = "choices" if option.choices else "files"
                values.append(f"        {pattern}) kind={kind}; words='{' '.join(option.choices)}' ;;")
    names = " ".join(f"'{' '.join(verb.words)}'" for verb in verbs if verb.words)
    return f"""\
# bash completion for {_PROGRAM}
_refusion_edge() {{
    local word verb='' known words='' kind='' current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        for known in {names}; do
            [[ $known == "${{verb:+$verb }}$word" ]] && verb=$known && break
        done
    done
    case "${{verb:+$verb }}$previous" in
{chr(10).join(values)}
        *) case "$verb" in
{chr(10).join(cases)}
        esac ;;
    esac
    mapfile -t COMPREPLY < <(
        [[ $kind == files && $current != -* ]] && compgen -f -- "$current"
        compgen -W "$words" -- "$current"
    )
}}
complete -o filenames -o bashdefault -F _refusion_edge {_PROGRAM}
"""


def _zsh(verbs: tuple[Verb, ...]) -> str:
    lines = [f"#compdef {_PROGRAM}", "", "_refusion_edge() {", '    local verb="" word next', "    local -a ways"]
    names = " ".join(f"'{' '.join(verb.words)}'" for verb in verbs if verb.words)
    lines += [
        f"    local -a names=({names})",
        "    for word in ${words[2,CURRENT-1]}; do",
        '        next="${verb:+$verb }$word"',
        "        (( ${names[(Ie)$next]} )) && verb=$next",
        "    done",
        '    case "$verb" in',
    ]
    for verb in verbs:
        lines.append(f"        '{' '.join(verb.words)}')")
        if verb.ways:
            ways = " ".join(f"'{name}:{_zsh_text(text)}'" for name, text in verb.ways.items())
            lines.append(f"            ways=({ways}); _describe 'verb' ways")
        specs = []
        for option in verb.options:
            for name in option.names:
                value = f":value:({' '.join(option.choices)})" if option.choices else ":value:_files" if option.takes else ""
                specs.append(f"'*{name}[{_zsh_text(option.help)}]{value}'")
        lines.append(f"            _arguments {' '.join(specs)} '*:file:_files' ;;")
    return "\n".join([*lines, "    esac", "}", "", '_refusion_edge "$@"', ""])


def _zsh_text(text: str) -> str:
    return text.replace("'", "'\\''").replace("[", "(").replace("]", ")").replace(":", ";")


def _fish(verbs: tuple[Verb, ...]) -> str:
    lines = [f"# fish completion for {_PROGRAM}"]
    for verb in verbs:
        if verb.words:
            seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.words)
        else:
            seen = "__fish_use_subcommand"
        chosen = f"; and not __fish_seen_subcommand_from {' '.join(verb.ways)}" if verb.words and verb.ways else ""
        asked = "" if verb.words else "; or __fish_seen_subcommand_from help"
        for name, text in verb.ways.items():
            lines.append(f"complete -c {_PROGRAM} -f -n '{seen}{chosen}{asked}' -a {name} -d {_fish_text(text)}")
        for option in verb.options:
            spelled = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = f" -x -a '{' '.join(option.choices)}'" if option.choices else " -r" if option.takes else ""
            lines.append(f"complete -c {_PROGRAM} -n '{seen}' {spelled}{value} -d {_fish_text(option.help)}")
    return "\n".join([*lines, ""])


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
