"""PTX text, decoded into what the compiled module runs. Whatever is not known is refused by its name and line.

The text is that of one kernel as compilers write it: one entry, all registers declared in files of one type, statements that
end with a semicolon. Dynamic shared memory is one external array.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusion_edge.errors import BackendError
from refusion_edge.kernels.emulator.compiled import load_module
from refusion_edge.kernels.emulator.instructions import INSTRUCTIONS, SPECIAL_REGISTERS, Form

SHARED_BASE = 1024
"""Where dynamic shared memory starts: behind what the driver keeps for itself, so that no valid address is zero."""

_WORDS, _LONGS, _PREDICATES = 0, 1, 2
_WRITTEN, _HALF = 4, 8
_REGISTER_FILES = {"b16": _WORDS, "b32": _WORDS, "b64": _LONGS, "pred": _PREDICATES}
_REGISTER_LETTERS = {"b16": "h", "b32": "r", "b64": "d", "pred": "p"}
_FILE_OF_LETTER = {"h": _WORDS, "r": _WORDS, "a": _WORDS, "d": _LONGS, "g": _LONGS, "p": _PREDICATES}
_BITS = {"h": 16, "r": 32, "a": 32, "d": 64, "g": 64, "p": 1}
# The first barrier, the whole warp, operands that are not negated: what integers have to be.
_DUE_INTEGERS = {"bar_sync": [0], "bar_warp_sync": [-1], "shfl_bfly": [-1], "shfl_idx": [-1], "wgmma": [1, 1]}
# In place of a special register: where results go that nobody reads.
_SINK = -1
# A thread of a GPU has 255 registers; PTX names each value anew.
_MOST_REGISTERS = 1 << 20
# A letter of an address names the register that holds it.
_REGISTER_OF_LETTER = {"a": "r", "g": "d"}

_ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)\s*\(([^)]*)\)\s*((?:\.[^.{]*)*)\{")
_PARAMETER = re.compile(r"\.param\s+\.(u64|u32|b64|b32|s32|f32)(?:\s+\.ptr)?(?:\s+\.global)?(?:\s+\.align\s+\d+)?\s+([\w$]+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%[A-Za-z]\w*?)<(\d+)>")
_SHARED = re.compile(r"\.extern\s+\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[\]")
_IGNORED = re.compile(r"\.version\s+\d+\.\d+|\.address_size\s+64|\.global\s+\.align\s+\d+\s+\.b8\s+_\$_str[\w$]*\[\d+\]\s*=.*")
_TARGET = re.compile(r"\.target\s+sm_(\d+)[af]?")
_LABEL = re.compile(r"(\$[\w$]+):\s*")
_GUARD = re.compile(r"@(!?)(%p\d+)\s+")
_FLOAT = re.compile(r"0[fF]([0-9A-Fa-f]{8})")
_INTEGER = re.compile(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?")


@dataclass(frozen=True, slots=True)
class DecodedKernel:
    """A kernel, ready to run.

    Attributes:
        name: Of the entry.
        architecture: 10 times the compute capability that it was compiled for.
        parameters: Type (``u64``, ``u32``) and offset in the block of arguments, in order.
        parameter_bytes: Size of that block.
        threads: Of a CTA.
        uses_shared: Whether it declares dynamic shared memory.
        lines: Line of each instruction in the text, from 1.
        texts: Each instruction as it is written.
        opcodes: Each instruction's opcode with its modifiers.
        operations: Each instruction's name in the compiled module.
        access_bytes: Bytes that each instruction moves in one lane; 0 where it moves none.
        registers: Name of the register in each file, by index.
        handle: The kernel in the compiled module.
    """

    name: str
    architecture: int
    parameters: tuple[tuple[str, int], ...]
    parameter_bytes: int
    threads: int
    uses_shared: bool
    lines: tuple[int, ...]
    texts: tuple[str, ...]
    opcodes: tuple[str, ...]
    operations: tuple[str, ...]
    access_bytes: tuple[int, ...]
    registers: tuple[dict[int, str], ...]
    handle: Any


def decode(text: str) -> DecodedKernel:
    """Decode the one kernel of a module.

    Args:
        text: PTX.

    Raises:
        BackendError: The emulator is not built, or does not know something in the text.
    """
    module = load_module()
    entries = list(_ENTRY.finditer(text := _without_comments(text)))
    if len(entries) != 1:
        raise _refusal(f"{len(entries)} entries", "one kernel in a module", got=len(entries))
    (entry,) = entries
    decoder = _Decoder(text, entry, {name: index for index, name in enumerate(module.OPERATIONS)})
    return decoder.finish(module)


def _without_comments(text: str) -> str:
    """Blank all comments out, so that lines keep their numbers."""
    text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def _refusal(what: str, due: str, line: int = 0, got: object = None) -> BackendError:
    where = f" in line {line} of the PTX" if line else ""
    return BackendError(
        f"the PTX emulator does not know {what}{where} ({due})",
        "compile with a version of Triton that it was tested with, or extend refusion_edge.kernels.emulator",
        got=got,
    )


class _Decoder:
    """State while a module is decoded."""

    def __init__(self, text: str, entry: re.Match[str], operations: dict[str, int]) -> None:
        self.name = entry[1]
        self.operations = operations
        self.symbols: dict[str, tuple[str, int]] = {}  # registers: letter and index
        self.names: tuple[dict[int, str], ...] = ({}, {}, {})
        self.counts = [0, 0, 0]
        self.constants: dict[tuple[int, int, int], int] = {}  # file, special register, value: index
        self.shared: set[str] = set()
        self.architecture = 0
        self.threads = 0
        self.labels: dict[str, int] = {}
        self.branches: list[tuple[int, str, int]] = []  # instruction, label, line
        self.rows: list[list[int]] = []
        self.operands: list[int] = []
        self.classes: list[int] = []
        self.lines: list[int] = []
        self.texts: list[str] = []
        self.opcodes: list[str] = []
        self.grain = 2
        self.parse_head(text[: entry.start()])
        self.parameters = self.parse_parameters(entry[2])
        self.parse_directives(entry[3])
        end = text.rfind("}")
        if end < entry.end():
            raise _refusal("a kernel without its last brace", "the end of the kernel")
        if text[end + 1 :].strip():
            raise _refusal(f"'{_shortened(text[end + 1 :])}'", "behind the kernel", got=_shortened(text[end + 1 :]))
        for line, statement in _statements(text[entry.end() : end], text.count("\n", 0, entry.end()) + 1):
            self.parse_statement(statement, line)

    def parse_head(self, head: str) -> None:
        for number, text in enumerate(head.split("\n"), 1):
            statement = text.strip().rstrip(";")
            if not statement or _IGNORED.fullmatch(statement):
                continue
            if found := _TARGET.fullmatch(statement):
                self.architecture = int(found[1])
            elif found := _SHARED.fullmatch(statement):
                self.shared.add(found[2])
            else:
                raise _refusal(f"'{_shortened(statement)}'", "a directive", number, _shortened(statement))
        if len(self.shared) > 1:
            raise _refusal(f"{len(self.shared)} shared arrays", "there may be one", got=len(self.shared))

    def parse_parameters(self, text: str) -> dict[str, tuple[str, int]]:
        found, offset = {}, 0
        for one in filter(None, (part.strip() for part in text.split(","))):
            match = _PARAMETER.fullmatch(one)
            if match is None:
                raise _refusal(f"'{_shortened(one)}'", "a parameter", got=_shortened(one))
            size = int(match[1][1:]) // 8
            offset += -offset % size
            found[match[2]] = match[1], offset
            offset += size
        self.parameter_bytes = offset
        return found

    def parse_directives(self, text: str) -> None:
        for directive in filter(None, (line.strip() for line in text.split("\n"))):
            match = re.fullmatch(r"\.(reqntid|maxntid)\s+(\d+)(?:\s*,\s*1\s*,\s*1)?", directive)
            if match is None and not re.fullmatch(r"\.(minnctapersm|maxnreg)\s+\d+", directive):
                raise _refusal(f"'{_shortened(directive)}'", "a directive", got=_shortened(directive))
            if match is not None:
                self.threads = int(match[2])
        if not self.threads:
            raise _refusal("a kernel without .reqntid", "the number of its threads")

    def parse_statement(self, statement: str, line: int) -> None:
        while found := _LABEL.match(statement):
            self.labels[found[1]] = len(self.rows)
            statement = statement[found.end() :]
        if not statement:
            return
        if statement.startswith("."):
            self.declare(statement, line)
            return
        guard, guard_not, rest = -1, 0, statement
        if found := _GUARD.match(statement):
            guard, guard_not = self.operand(found[2], "p", line), int(bool(found[1]))
            rest = statement[found.end() :]
        opcode, _, operands = rest.replace("\t", " ").partition(" ")
        self.lines.append(line)
        self.texts.append(statement)
        self.opcodes.append(opcode)
        if opcode in ("bra", "bra.uni"):
            self.branches.append((len(self.rows), operands.strip(), line))
            self.rows.append([self.operations["bra"], guard, guard_not, 0, 0, 0, 0, 0, 0])
            return
        forms = INSTRUCTIONS.get(opcode)
        if forms is None:
            raise _refusal(f"the instruction {opcode}", _shortened(statement), line, opcode)
        matches = [(form, match) for form in forms if (match := form.pattern.fullmatch(operands.strip()))]
        if not matches:
            raise _refusal(f"the operands of {opcode}", _shortened(statement), line, operands.strip())
        # Forms that look alike differ in the width of their registers.
        form, match = next((found for found in matches if self.fits(*found)), matches[0])
        self.rows.append([self.operations[form.operation], guard, guard_not, 0, *self.encode(form, match, line)])

    def fits(self, form: Form, match: re.Match[str]) -> bool:
        """Whether every register among the operands has as many bits as a form takes."""
        # An address has a second group, its offset.
        letters = form.letters.translate({ord(letter): f"{letter}i" for letter in "agk"}).lower()
        registers = zip(match.groups(), letters, strict=True)
        return all(
            self.symbols[text][0] == _REGISTER_OF_LETTER.get(letter, letter)
            for text, letter in registers
            if text in self.symbols
        )

    def encode(self, form: Form, match: re.Match[str], line: int) -> list[int]:
        """Size, count, kind, number of operands and offset, after appending the operands."""
        texts, offset, count, kind = iter(match.groups()), 0, form.count, form.kind
        before = len(self.operands)
        integers: list[int] = []
        for letter in form.letters:
            text = next(texts)
            if letter == "i":
                integers.append(self.integer(text, line))
                continue
            if letter in "agk":
                offset = int(next(texts) or 0)
            if letter == "k":
                if text not in self.parameters:
                    raise _refusal(f"the parameter {text}", "of this kernel", line, text)
                kind_of, place = self.parameters[text]
                if abs(form.size) != int(kind_of[1:]) // 8 or offset:
                    raise _refusal(
                        f"reading {abs(form.size)} bytes of the parameter {text}", f"of the type {kind_of}", line, text
                    )
                offset = place
                continue
            small = letter.lower()
            file = _FILE_OF_LETTER[small]
            self.operands.append(self.operand(text, letter, line))
            self.classes.append(file | (_WRITTEN if letter.isupper() else 0) | (_HALF if small == "h" else 0))
        if form.operation == "st_shared" and form.size < 4:
            self.grain = 1
        if integers:
            self.check_integers(form, integers, line)
        if form.operation == "wgmma":
            # After the signs of A and B: which of those in shared memory are transposed.
            transposed = integers[2:] if form.kind else [0, *integers[2:]]
            kind |= transposed[0] << 1 | transposed[1] << 2
        if form.operation == "wgmma_wait":
            count = integers[0]
        return [form.size, count, kind, len(self.operands) - before, offset]

    def check_integers(self, form: Form, integers: list[int], line: int) -> None:
        """Refuse barriers other than the first, masks other than the whole warp, and negated operands of wgmma."""
        due = _DUE_INTEGERS.get(form.operation)
        if form.operation == "wgmma" and any(flag not in (0, 1) for flag in integers[2:]):
            raise _refusal(f"{integers[2:]}", "whether the operands of wgmma are transposed", line)
        if due is not None and [_signed(value) for value in integers[: len(due)]] != due:
            raise _refusal(f"{integers[: len(due)]}", f"{form.operation} with {due}", line, integers[: len(due)])

    def declare(self, statement: str, line: int) -> None:
        match = _REGISTERS.fullmatch(statement)
        if match is None or match[1] not in _REGISTER_FILES:
            raise _refusal(f"'{_shortened(statement)}'", "a declaration", line, _shortened(statement))
        file, letter, prefix = _REGISTER_FILES[match[1]], _REGISTER_LETTERS[match[1]], match[2]
        first, names = self.counts[file], self.names[file]
        if int(match[3]) > _MOST_REGISTERS - first:
            raise _refusal(f"{match[3]} registers", f"there may be {_MOST_REGISTERS} of a kind", line, int(match[3]))
        for number in range(int(match[3])):
            name = f"{prefix}{number}"
            if name in self.symbols:
                raise _refusal(f"the register {name} twice", "registers are declared once", line, name)
            self.symbols[name] = letter, first + number
            names[first + number] = name
        self.counts[file] += int(match[3])

    def operand(self, text: str, letter: str, line: int) -> int:
        """Index of a register in its file, or of one that holds a constant."""
        small = letter.lower()
        due = _REGISTER_OF_LETTER.get(small, small)
        if (known := self.symbols.get(text)) is not None:
            if known[0] != due:
                raise _refusal(f"the {_BITS[known[0]]} bits of {text}", f"{_BITS[due]} are due", line, _BITS[known[0]])
            return known[1]
        if not letter.isupper():
            return self.constant(_FILE_OF_LETTER[small], *self.literal(text, due, line))
        if text != "_":
            raise _refusal(f"a result in {text}", "a register is due", line, text)
        return self.constant(_FILE_OF_LETTER[small], _SINK, 0)

    def literal(self, text: str, due: str, line: int) -> tuple[int, int]:
        """A special register or 0, and the value of a constant."""
        if special := SPECIAL_REGISTERS.get(text):
            return special, 0
        if text in self.shared:
            return 0, SHARED_BASE
        if found := _FLOAT.fullmatch(text):
            return 0, int(found[1], 16)
        value = self.integer(text, line)
        return 0, int(value != 0) if due == "p" else value & ((1 << _BITS[due]) - 1)

    def integer(self, text: str, line: int) -> int:
        if text == "true":
            return 1
        if text == "false":
            return 0
        if _INTEGER.fullmatch(text) is None:
            raise _refusal(f"the operand {text}", "a number is due", line, text)
        digits = text.rstrip("U")
        return int(digits, 16 if "x" in digits.lower() else 10)

    def constant(self, file: int, special: int, value: int) -> int:
        """A register that holds a constant, placed behind all registers that are declared; for now a negative number."""
        return self.constants.setdefault((file, special, value), -1 - len(self.constants))

    def finish(self, module: Any) -> DecodedKernel:
        counts, placed, rows = list(self.counts), {}, []
        for (file, special, value), token in self.constants.items():
            placed[token] = counts[file]
            self.names[file][counts[file]] = "_" if special == _SINK else str(value)
            if special != _SINK:
                rows.append((file, counts[file], special, value))
            counts[file] += 1
        for index, label, line in self.branches:
            if self.labels.get(label, len(self.rows)) >= len(self.rows):
                raise _refusal(f"the label {label}", "to branch to", line, label)
            self.rows[index][3] = self.labels[label]
        if not self.opcodes or self.opcodes[-1] != "ret" or self.rows[-1][1] != -1:
            raise _refusal("a kernel that does not end with ret", "the last instruction")
        operands = np.array([placed.get(one, one) for one in self.operands], np.int32)
        code = np.array(self.rows, np.int64)
        # Guards are registers that are declared.
        if (code[:, 1] < -1).any():
            raise _refusal("a guard that is a constant", "a predicate is due")
        constants = np.array(rows, np.uint64).reshape(-1, 4)
        handle = module.make_kernel(code, operands, np.array(self.classes, np.uint8), constants, counts, self.grain)
        names = module.OPERATIONS
        operations = tuple(names[row[0]] for row in self.rows)
        return DecodedKernel(
            self.name,
            self.architecture,
            tuple(self.parameters.values()),
            self.parameter_bytes,
            self.threads,
            bool(self.shared),
            tuple(self.lines),
            tuple(self.texts),
            tuple(self.opcodes),
            operations,
            tuple(_access_bytes(name, row) for name, row in zip(operations, self.rows, strict=True)),
            self.names,
            handle,
        )


def _access_bytes(operation: str, row: list[int]) -> int:
    size, count = row[4], row[5]
    if operation in ("ldmatrix", "ldmatrix_trans", "stmatrix"):
        return 4 * count
    return size * count if operation in ("ld_global", "st_global", "ld_shared", "st_shared") else 0


def _statements(body: str, line: int) -> Iterator[tuple[int, str]]:
    """Statements without their semicolon, each with the line it starts in."""
    pending = ""
    started = line
    for text in body.split("\n"):
        stripped = text.strip()
        if stripped:
            if not pending:
                started = line
            *ended, rest = stripped.split(";")
            for one in ended:
                statement = f"{pending} {one.strip()}".strip()
                if statement:
                    yield started, statement
                pending, started = "", line
            rest = rest.strip()
            # A label has no semicolon.
            if rest and not pending and _LABEL.fullmatch(rest):
                yield line, rest
            elif rest:
                pending = f"{pending} {rest}".strip()
        line += 1
    if pending:
        raise _refusal(f"'{_shortened(pending)}'", "a statement without its end", started, _shortened(pending))


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 == 1 else value


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 80 else f"{words[:77]}..."
