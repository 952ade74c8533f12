"""PTX of Triton, made to fit TensorRT's calling convention for plugins: inputs, then integers, then outputs, nothing hidden.

Triton appends pointers of its own to the parameters of every kernel (``global_scratch`` and ``profile_scratch``), which a
launch that does not know of them would read from beyond its arguments; and our kernels have their integers last. Parameters
are named in PTX, and the order of their declarations alone decides where they lie, so that both are a matter of the
declaration: what is never read goes, the rest is put in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENTRY = re.compile(r"(?P<head>\.visible \.entry (?P<name>[\w$]+)\()(?P<parameters>[^)]*)(?P<tail>\))")
_DECLARED = re.compile(r"\.param\s+\.(?P<type>[a-z]\d+)\b[^,]*?\b(?P<name>[\w$]+_param_\d+)")


class PtxError(Exception):
    """PTX that is not as Triton writes it."""


def parameters(ptx: str) -> tuple[tuple[str, str], ...]:
    """Type (``u64``, ``u32``) and name of every parameter of the one kernel in a module, in order.

    Raises:
        PtxError: There is no kernel, or more than one, or a declaration is not understood.
    """
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise PtxError(f"expected one kernel in the PTX, got {len(entries)}")
    declarations = [text for text in entries[0]["parameters"].split(",") if text.strip()]
    found = [_DECLARED.search(text) for text in declarations]
    return tuple((match["type"], match["name"]) for match in found if match) if all(found) else _not_understood(declarations)


def rearranged(ptx: str, order: Sequence[int]) -> str:
    """Declare the parameters of a kernel in another order, and leave those out that are not in it.

    Args:
        ptx: A module with one kernel.
        order: Indices of the parameters to keep, each once.

    Raises:
        PtxError: A parameter that is left out is read, an index is out of range or twice, or the PTX is not understood.
    """
    declared = parameters(ptx)
    if len(set(order)) != len(order) or not all(0 <= index < len(declared) for index in order):
        raise PtxError(f"expected an order of {len(declared)} parameters, got {list(order)}")
    entry = next(_ENTRY.finditer(ptx))
    before, body = ptx[: entry.start()], ptx[entry.end() :]
    for index, (_, name) in enumerate(declared):
        if index not in order and re.search(rf"\b{re.escape(name)}\b", body):
            raise PtxError(f"expected the hidden parameter {name} to be unused, got one that the kernel reads")
    declarations = [text.strip() for text in entry["parameters"].split(",")]
    kept = ",\n\t".join(declarations[index] for index in order)
    return f"{before}{entry['head']}\n\t{kept}\n{entry['tail']}{body}"


def _not_understood(declarations: Sequence[str]) -> tuple[tuple[str, str], ...]:
    raise PtxError(f"expected declarations of parameters, got '{' / '.join(text.strip() for text in declarations)[:120]}'")
