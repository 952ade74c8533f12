"""The C library through ctypes, with the types of ``refusion_edge.h``."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from refusion_edge.arrays import Array

INVALID, UNREADABLE, DAMAGED, UNSUPPORTED, NO_MEMORY, FAILED, UNTRUSTED = range(1, 8)
FP32, BF16, FP16 = 0, 1, 2
TYPES = {np.dtype(np.float32): 0, np.dtype(np.uint8): 1, np.dtype(np.uint16): 2}

_POINTER, _STRIDE, _INT, _TEXT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_char_p


class Plane(ctypes.Structure):
    """``refusion_edge_plane``."""

    _fields_ = (
        ("pixels", _POINTER),
        ("pitch", _STRIDE),
        ("type", _INT),
        ("black", ctypes.c_float),
        ("white", ctypes.c_float),
    )


_PLANE = (_POINTER, _STRIDE)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (_TEXT, ()),
    "create": (_POINTER, (_TEXT, _INT, _INT)),
    "create_from_memory": (_POINTER, (_TEXT, ctypes.c_size_t, _INT, _INT)),
    "create_program": (_POINTER, (_TEXT,)),
    "create_program_from_memory": (_POINTER, (_TEXT, ctypes.c_size_t)),
    "create_plan": (_POINTER, (_TEXT, _INT)),
    "fuse": (_INT, (_POINTER, *_PLANE, *_PLANE, _INT, _INT, *_PLANE)),
    "fuse_planes": (_INT, (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _POINTER)),
    "fuse_adapted": (_INT, (_POINTER, *_PLANE, *_PLANE, _INT, _INT, _POINTER, *_PLANE)),
    "statistics": (_INT, (_POINTER, *_PLANE, *_PLANE, _INT, _INT, _POINTER)),
    "network": (_TEXT, (_POINTER,)),
    "to_uint8": (_INT, (*_PLANE, _INT, _INT, _INT, *_PLANE)),
    "isa": (_TEXT, (_POINTER,)),
    "threads": (_INT, (_POINTER,)),
    "destroy": (None, (_POINTER,)),
    "error": (_TEXT, ()),
    "error_code": (_INT, ()),
}


def load_library(path: Path) -> Any:
    """The functions of a shared library by their names without ``refusion_edge_``."""
    library = ctypes.CDLL(str(path))

    class Functions:
        pass

    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, f"refusion_edge_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(Functions, name, staticmethod(function))
    return Functions


def passed(plane: Array | None) -> tuple[int | None, int]:
    """Address and row stride."""
    return (None, 0) if plane is None else (plane.ctypes.data, plane.strides[0])


def described(plane: Array, black: float = 0, white: float = 0) -> Plane:
    """A plane for ``refusion_edge_fuse_planes``."""
    return Plane(plane.ctypes.data, plane.strides[0], TYPES[plane.dtype], black, white)


def fuse(library: Any, engine: int, a: Array, b: Array) -> Array | None:
    """Fuse planes of float; None for a failure."""
    fused = np.full_like(a, 7)
    return None if library.fuse(engine, *passed(a), *passed(b), *a.shape, *passed(fused)) else fused
