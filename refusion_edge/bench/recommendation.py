"""Whether an INT8 engine is worth having here: only where its accuracy gate passed and it is also faster.

INT8 costs accuracy in every picture, and layer norms, GELU and attention run in higher precision around every INT8
convolution, so that it is not faster by itself. Beside an engine of another precision of the same task, size and back end,
``bench`` therefore says which one to use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refusion_edge.accuracy.fidelity import LIMITS
from refusion_edge.bench.comparison import Comparison
from refusion_edge.bench.measurement import Row
from refusion_edge.bench.stages import END_TO_END
from refusion_edge.bench.subjects import Identity, Quality
from refusion_edge.network.layouts import Precision

_INT8: Precision = "int8"
# Measured one after the other, two equal engines differ by a little; turns (--compare) tell smaller differences.
_SURELY_FASTER = 0.95


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Advice about one INT8 engine.

    Attributes:
        identity: The INT8 engine.
        against: The engine that it was held against, the fastest one of another precision.
        recommended: Whether to use it.
        reason: Why, or why not.
    """

    identity: Identity
    against: Identity
    recommended: bool
    reason: str

    def __str__(self) -> str:
        verdict = "recommended" if self.recommended else f"not recommended, use {self.against.label}"
        return f"{self.identity.label}: {verdict} ({self.reason})"


def from_rows(rows: Sequence[Row]) -> tuple[Recommendation, ...]:
    """Judge every INT8 engine beside which one of another precision for the same task, size and back end was measured."""
    return tuple(_judged_rows(rows))


def from_comparison(found: Comparison | None) -> tuple[Recommendation, ...]:
    """Judge an INT8 engine that was measured in turns with one of another precision."""
    if found is None or (found.first.precision == _INT8) == (found.second.precision == _INT8):
        return ()
    first_is_int8 = found.first.precision == _INT8
    int8, other = (found.first, found.second) if first_is_int8 else (found.second, found.first)
    if problem := _gate_problem(found.qualities[0 if first_is_int8 else 1]):
        return (Recommendation(int8, other, recommended=False, reason=problem),)
    if found.ratios is None:
        return (Recommendation(int8, other, recommended=False, reason="its speed is not stable"),)
    ratio = found.ratios[END_TO_END]
    # Time of the INT8 engine over time of the other.
    relative = 1 / ratio.value if first_is_int8 else ratio.value
    faster = ratio.distinct and relative < 1
    reason = f"{1 / relative:.2f}x faster than {other.precision}" if faster else f"not faster than {other.precision}"
    return (Recommendation(int8, other, recommended=faster, reason=reason),)


def _judged_rows(rows: Sequence[Row]) -> Iterator[Recommendation]:
    for row in rows:
        others = [
            (other.stages[END_TO_END].median_ms, other)
            for other in rows
            if other.identity.precision != _INT8 and _place(other.identity) == _place(row.identity) and other.stages is not None
        ]
        if row.identity.precision != _INT8 or not others:
            continue
        fastest_ms, fastest = min(others, key=lambda item: item[0])
        against = fastest.identity
        if problem := _gate_problem(row.quality):
            yield Recommendation(row.identity, against, recommended=False, reason=problem)
        elif row.stages is None:
            yield Recommendation(row.identity, against, recommended=False, reason="its speed is not stable")
        else:
            own_ms = row.stages[END_TO_END].median_ms
            faster = own_ms < _SURELY_FASTER * fastest_ms
            figures = f"{own_ms:.3g} against {fastest_ms:.3g} ms"
            reason = f"{fastest_ms / own_ms:.2f}x faster" if faster else f"not faster than {against.precision}"
            yield Recommendation(row.identity, against, recommended=faster, reason=f"{reason}, {figures}")


def _place(identity: Identity) -> tuple[object, ...]:
    return identity.task, identity.size_hw, identity.backend


def _gate_problem(quality: Quality | None) -> str:
    """Why the accuracy of an engine speaks against it; empty if it does not."""
    if quality is None:
        return "its accuracy gate has not run on this engine"
    limits = LIMITS[_INT8]
    if (quality.psnr_db is not None and not quality.psnr_db >= limits.psnr_db) or not quality.ssim >= limits.ssim:
        psnr = "equal" if quality.psnr_db is None else f"{quality.psnr_db:.1f} dB"
        return f"too far from fp32: {psnr}, SSIM {quality.ssim:.4f}"
    return ""
