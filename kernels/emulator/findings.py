"""What the checker finds wrong in a launch, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CAUSES = {
    "global_bounds": "an address outside every buffer of the launch",
    "global_alignment": "an address in global memory that is no multiple of the access",
    "global_read_only": "a write to an input",
    "shared_bounds": "an address outside the shared memory of the launch",
    "shared_alignment": "an address in shared memory that is no multiple of the access",
    "parameter_bounds": "a parameter outside the block of arguments",
    "undefined_address": "an address from a register that was never written",
    "undefined_guard": "a predicate that depends on what was never written decides",
    "undefined_store": "a value that depends on what was never written is stored",
    "undefined_descriptor": "a matrix descriptor that depends on what was never written",
    "shared_read_after_write": "a race in shared memory: read while another warp writes, with no barrier between",
    "shared_write_after_read": "a race in shared memory: written while another warp reads, with no barrier between",
    "shared_write_after_write": "a race in shared memory: two warps write, with no barrier between",
    "shared_within_warp": "a race in shared memory between lanes of a warp, with no bar.warp.sync between",
    "global_between_ctas": "a race in global memory between two CTAs",
    "global_within_cta": "a race in global memory between threads of a CTA, with no barrier between",
    "barrier": "a barrier that not all threads of the CTA reach together",
    "collective": "an instruction of the whole warp that not all of its lanes execute",
    "proxy_fence": "wgmma reads shared memory with no fence.proxy.async since the write",
    "wgmma_register": "a register is touched before the wgmma that uses it has been waited for",
    "wgmma_fence": "wgmma without a wgmma.fence since one of its registers was written, or without any",
    "wgmma_descriptor": "the lanes of a warp pass different matrix descriptors",
    "wgmma_overwritten": "shared memory is written before the wgmma that reads it has been waited for",
    "wgmma_unfinished": "a wgmma that nobody waits for",
    "budget": "more instructions than the launch may take; it was stopped",
    "same_value": "two threads store the same value at one place",
    "undefined_output": "bytes of an output that no thread wrote, or that depend on what was never written",
}
"""What each kind of finding means. ``same_value`` changes no result and is no fault."""

HARMLESS = frozenset({"same_value"})

_RACES = ("shared_read", "shared_write", "shared_within", "global_between", "global_within", "same_value", "proxy_fence",
          "wgmma_overwritten")  # fmt: skip
_REGISTERS = ("undefined_", "wgmma_register", "wgmma_fence")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong at one instruction.

    Attributes:
        kind: A key of ``CAUSES``.
        kernel: Name of the kernel.
        line: Line of the PTX, from 1; 0 if it is none in particular.
        instruction: Text of the instruction.
        cta: Where it was seen first: index of the CTA, x fastest.
        thread: Thread in the CTA.
        other: The other thread of a race; -1 if there is none.
        register: The register at fault; empty if there is none.
        place: Buffer and offset in bytes, or the address in shared memory; empty if there is none.
        count: How often it happened, in lanes or elements.
    """

    kind: str
    kernel: str
    line: int
    instruction: str
    cta: int
    thread: int
    other: int
    register: str
    place: str
    count: int

    @property
    def is_harmless(self) -> bool:
        """Whether no result can depend on it."""
        return self.kind in HARMLESS

    def __str__(self) -> str:
        details = [f"CTA {self.cta}, thread {self.thread}"]
        if self.other >= 0:
            details.append(f"and thread {self.other}")
        details += [text for text in (self.register, self.place) if text]
        where = f"{self.kernel}, line {self.line}" if self.line else self.kernel
        text = f": {self.instruction}" if self.instruction else ""
        return f"{where}: {CAUSES[self.kind]} ({', '.join(details)}; {self.count} times){text}"

    def to_json(self) -> dict[str, Any]:
        """All fields, and the cause in words."""
        return {**asdict(self), "cause": CAUSES[self.kind]}


def is_race(kind: str) -> bool:
    """Tell whether a finding of this kind has a second thread."""
    return kind.startswith(_RACES)


def names_register(kind: str) -> bool:
    """Tell whether a finding of this kind is about a register."""
    return kind.startswith(_REGISTERS)


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Those that are not harmless."""
    return [finding for finding in findings if not finding.is_harmless]
