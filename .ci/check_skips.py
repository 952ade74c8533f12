"""List the skipped tests of a run, and fail if the reason of one is not allowed: skipped does not mean passed.

Reads the report of ``pytest --junitxml=FILE``. A reason is allowed if a line of ``allowed_skips.txt`` matches all of it.

python .ci/check_skips.py build/tests.xml [.ci/allowed_skips.txt]
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

_ALLOWED = Path(__file__).with_name("allowed_skips.txt")
_NAMED = 5


def main() -> int:
    """Print the table of skips; 1 for a skip that is not allowed, or for an unusable report."""
    report, allowed = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else _ALLOWED
    try:
        lines = read_allowed(allowed)
        total, skips = read_report(report)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        print(f"skips: the report of pytest --junitxml or the list of allowed skips is unusable: {error}", file=sys.stderr)
        return 1
    if total == 0:
        print(f"skips: {report} holds no tests; run them with --junitxml={report}", file=sys.stderr)
        return 1

    used = set()
    unexpected: dict[str, list[str]] = {}
    print(f"skips: {sum(map(len, skips.values()))} of {total} tests")
    for reason, tests in sorted(skips.items(), key=lambda item: (-len(item[1]), item[0])):
        matching = [number for number, pattern in lines.items() if pattern.fullmatch(reason)]
        used.update(matching)
        if not matching:
            unexpected[reason] = tests
        place = f"line {matching[0]}" if matching else "NOT ALLOWED"
        print(f"{len(tests):6}  {place:12} {reason}")
    if unused := [f"{number}: {lines[number].pattern}" for number in lines if number not in used]:
        print(f"skips: {len(unused)} lines of {allowed.name} matched nothing in this run:", *unused, sep="\n" + " " * 8)
    sys.stdout.flush()
    for reason, tests in unexpected.items():
        more = f" and {len(tests) - _NAMED} more" if len(tests) > _NAMED else ""
        print(
            f"skips: {', '.join(tests[:_NAMED])}{more} skipped for '{reason}'; install what is missing, or allow the reason in "
            f"{allowed.name}",
            file=sys.stderr,
        )
    return 1 if unexpected else 0


def read_allowed(path: Path) -> dict[int, re.Pattern[str]]:
    """Regular expressions by line number, without empty lines and comments."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            try:
                found[number] = re.compile(line.strip())
            except re.error as error:
                raise ValueError(f"'{line.strip()}' in line {number} of {path.name} ({error})") from None
    return found


def read_report(path: Path) -> tuple[int, dict[str, list[str]]]:
    """Number of tests in the report, and names of the skipped ones by reason."""
    total = 0
    skips: dict[str, list[str]] = defaultdict(list)
    for case in ElementTree.parse(path).iter("testcase"):
        total += 1
        for skipped in case.iter("skipped"):
            if skipped.get("type") != "pytest.xfail":
                name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
                skips[_reason(skipped)].append(name)
    return total, dict(skips)


def _reason(skipped: ElementTree.Element) -> str:
    message = skipped.get("message") or ""
    if message == "collection skipped":  # a whole file, whose reason is in the text: (file, line, reason)
        try:
            message = str(ast.literal_eval(skipped.text or "")[-1])
        except (ValueError, SyntaxError, IndexError):
            message = skipped.text or message
    return " ".join(message.removeprefix("Skipped: ").split())


if __name__ == "__main__":
    raise SystemExit(main())
