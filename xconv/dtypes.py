"""Which dtype a result has, and in which one its sums are formed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from .errors import Refusal
from .namespace import (
    COMPLEX,
    INTEGER,
    REAL,
    Namespace,
    dtype_name,
    in_place,
    itemsize,
    native_unsigned,
    result_name,
    widens_integers,
)

LARGE_UNSIGNED = ("uint16", "uint32", "uint64")


class DTypes(NamedTuple):
    """Names of the dtypes of one contraction: products and sums, and the result."""

    compute: str
    result: str

    def converts(self, dtypes: Iterable[Any]) -> bool:
        """Whether an array of any of these dtypes is converted, as it is none that sums have."""
        return not {self.compute}.issuperset(map(dtype_name, dtypes))

    def wider(self, xp: Namespace, other: DTypes) -> DTypes:
        """Return those in which both have room."""
        return DTypes(*(result_name(xp, *pair) for pair in zip(self, other, strict=True)))


def promoted(
    xp: Namespace, a: str, b: str, dtype: str | None = None, real_part: bool = False
) -> str:
    """Return the name of ``result_type(a, b)``, or of `dtype` where that is given.

    Parameters
    ----------
    xp : namespace
        Whose promotion rules hold.
    a, b : str
        The arrays' dtypes.
    dtype : str, optional
        What the result shall have; both arrays must promote to it.
    real_part : bool
        Whether a real `dtype` may be asked of complex arrays.
    """
    name = result_name(xp, a, b)
    if name not in INTEGER and a in INTEGER and b in INTEGER:
        raise Refusal("integer dtypes that promote to an integer", f"{a} and {b}", TypeError)
    if dtype is None:
        return name
    part = real_of(name) if real_part and dtype in REAL else name
    if result_name(xp, part, dtype) != dtype:
        raise Refusal(
            "a dtype that both arrays promote to, or the wider one cast to it",
            f"dtype {dtype}, arrays {a} and {b}",
            TypeError,
        )
    return dtype


@lru_cache(maxsize=1024)
def contraction(
    xp: Namespace, a: str, b: str, terms: int, like: str | None, dtype: str | None, real_part: bool
) -> DTypes:
    """Return the dtypes of a contraction of arrays of types `a` and `b`.

    It is a sum of `terms` products. Its result has the type `like`, if that is given and no
    integer.
    """
    name = promoted(xp, a, b, dtype, real_part)
    whole = result_name(xp, a, b, name)  # complex arrays, real dtype: still complex
    result = name
    if like is not None:
        result = like if like in REAL + COMPLEX else promoted(xp, a, b)
    return DTypes(accumulation(xp, a, b, whole, terms), result)


def real_of(name: str) -> str:
    """Return the dtype of the real part."""
    return {"complex64": "float32", "complex128": "float64"}.get(name, name)


def accumulation(xp: Namespace, a: str, b: str, name: str, terms: int) -> str:
    """Return the dtype in which products of `a` and `b` are summed to a result of type `name`.

    16-bit floats are summed in float32. Integers of 16 bits or less are summed in float64, where
    sums are exact below 2**53 and BLAS is 50 to 100 times faster than NumPy's integer product.
    """
    if name in ("float16", "bfloat16"):
        return "float32"
    if name in INTEGER:
        if widens_integers(xp) and a in INTEGER and b in INTEGER:
            bits = 8 * (itemsize(a) + itemsize(b))
            # itemsize: a bias of 64 bits would be rounded
            if bits <= 32 and terms << bits <= 2**52 and itemsize(name) <= 4:
                return "float64"
        if name in LARGE_UNSIGNED and not native_unsigned(xp):
            return "int64"
    return name


def sum_dtype(xp: Namespace, name: str) -> str:
    """Return the dtype in which many numbers are added up: in float32, 2**25 ones are too many."""
    if name in INTEGER:
        return name if native_unsigned(xp) else "int64"  # either wraps to the same
    if in_place(xp):
        return "complex128" if name in COMPLEX else "float64"
    return "float32" if name in ("float16", "bfloat16") else name
