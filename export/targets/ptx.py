"""Rearranging PTX of Triton to TensorRT's calling convention for plugins: inputs, integers, outputs, and no hidden parameters.

Triton appends pointers of its own to the parameters of every kernel (``global_scratch`` and ``profile_scratch``), which a
launch without them would read from beyond its arguments; and our kernels have their integers last. PTX refers to parameters
by name, and the order of the declarations alone decides where they lie. So it is enough to rewrite the declarations: hidden
parameters that are never read are dropped, and the others are reordered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENTRY = re.compile(r"(?P<head>\.visible \.entry (?P<name>[\w$]+)\()(?P<parameters>[^)]*)(?P<tail>\))")
_DECLARED = re.compile(r"\.param\s+\.(?P<type>[a-z]\d+)\b[^,]*?\b(?P<name>[\w$]+_param_\d+)")


class PtxError(Exception):
    """PTX in a form that Triton does not write."""


def parameters(ptx: str) -> tuple[tuple[str, str], ...]:
    """Type (``u64``, ``u32``) and name of every parameter of the one kernel in a module, in order.

    Raises:
        PtxError: There is no kernel, or more than one, or a declaration cannot be parsed.
    """
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise PtxError(f"the PTX has {len(entries)} kernels instead of one")
    declarations = [text for text in entries[0]["parameters"].split(",") if text.strip()]
    found = [_DECLARED.search(text) for text in declarations]
    return tuple((match["type"], match["name"]) for match in found if match) if all(found) else _not_understood(declarations)


def rearranged(ptx: str, order: Sequence[int]) -> str:
    """Declare the parameters of a kernel in another order, and drop those that are not part of it.

    Args:
        ptx: A module with one kernel.
        order: Indices of the parameters to keep, each once.

    Raises:
        PtxError: A dropped parameter is read, an index is out of range or repeated, or the PTX cannot be parsed.
    """
    declared = parameters(ptx)
    if len(set(order)) != len(order) or not all(0 <= index < len(declared) for index in order):
        raise PtxError(f"{list(order)} is not an order of {len(declared)} parameters")
    entry = next(_ENTRY.finditer(ptx))
    before, body = ptx[: entry.start()], ptx[entry.end() :]
    for index, (_, name) in enumerate(declared):
        if index not in order and re.search(rf"\b{re.escape(name)}\b", body):
            raise PtxError(f"the kernel reads the hidden parameter {name}")
    declarations = [text.strip() for text in entry["parameters"].split(",")]
    kept = ",\n\t".join(declarations[index] for index in order)
    return f"{before}{entry['head']}\n\t{kept}\n{entry['tail']}{body}"


def _not_understood(declarations: Sequence[str]) -> tuple[tuple[str, str], ...]:
    raise PtxError(f"cannot parse the parameters '{' / '.join(text.strip() for text in declarations)[:120]}'")
