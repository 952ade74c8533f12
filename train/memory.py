"""Memory of the process during training on a CPU.

Each step allocates and frees the same few hundred tensors. glibc returns large blocks to the kernel at once, and the
kernel has to find and clear them again page by page a moment later; where they stay in the process, they do not.
"""

from __future__ import annotations

import ctypes
import sys

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROWTH_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Have the process keep what it frees, for its own next allocations; it stays at its peak until it ends.

    Changes the whole process, so only a program that owns it should call this.

    Returns:
        Whether the C library took the settings: glibc does, others have none.
    """
    if sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    taken = [set_option(*option) for option in ((_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _GROWTH_BYTES), (_M_MMAP_MAX, 0))]
    return all(taken)
