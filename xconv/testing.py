"""Checks of gradients: for tests of code that uses convolutions, and for our own."""

from __future__ import annotations

import math
from typing import Any

from .convolution import conv, conv_transpose
from .dtypes import real_of, sum_dtype
from .errors import Refusal, public
from .gradients import conv_backward, conv_grad_input, conv_grad_weight
from .namespace import (
    INTEGER,
    Array,
    Namespace,
    accept,
    cast,
    current,
    default_rng,
    dtype_name,
    random_integers,
)
from .validation import Settings, forward_call

__all__ = ["check_adjoint", "check_gradients"]

ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
BOUND = 100  # times the coarsest rounding error: sums of thousands of terms stay well below


@public
def check_gradients(x: Array, w: Array, b: Array | None = None, /, **options: Any) -> float:
    """Compare `conv_backward` with differences of `conv`.

    A convolution is linear in each argument, so a difference with step 1 is exact, not an
    approximation. Each argument is moved by random small integers, and the change of
    ``sum(dy * conv(x, w, b))`` is compared with what its gradient predicts.

    Parameters
    ----------
    x, w : array
        Arguments of `conv`, of a floating or complex dtype.
    b : array, optional
        Bias.
    **options
        Those of `conv`.

    Returns
    -------
    float
        The largest error, relative to the sum of the magnitudes of the terms compared.

    Raises
    ------
    AssertionError
        If that is above 100 times the rounding error of the coarsest dtype involved.
    ValueError
        As `conv` does.
    TypeError
        As `conv` does, and for integers.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv.testing import check_gradients
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.standard_normal((2, 3, 9, 8)), rng.standard_normal((4, 3, 3, 2))
    >>> check_gradients(x, w, stride=2, padding=1, padding_mode="reflect") < 1e-14
    True
    """
    xp, (x, w, b) = accept(("b",), x=x, w=w, b=b)
    bound = _bound(x, w, b)
    with current(x):
        rng = default_rng(0)
        y = conv(x, w, b, **options)
        dy = random_integers(rng, y)
        grads = conv_backward(dy, x, w, **options)
        arguments: list[Array] = [x, w] if b is None else [x, w, b]
        errors = {}
        for i, (name, argument) in enumerate(zip("xwb", arguments, strict=False)):
            step = random_integers(rng, argument)
            moved = [a + step if i == j else a for j, a in enumerate(arguments)]
            after, before = _inner(xp, dy, conv(*moved, **options)), _inner(xp, dy, y)
            change, predicted = after[0] - before[0], _inner(xp, grads[i], step)
            size = after[1] + before[1] + predicted[1]
            errors[f"d{name}"] = abs(change.real - predicted[0].real) / (size or 1.0)
        return _largest(errors, bound)


@public
def check_adjoint(x: Array, w: Array, /, **options: Any) -> float:
    """Compare the three contractions with each other by the adjoint identity.

    ``<conv(x, w), g>``, ``<x, conv_grad_input(g, w)>`` and ``<w, conv_grad_weight(g, x)>`` are
    the same number for every g, and so is ``<x, conv_transpose(g, w)>`` for real arrays.

    Parameters
    ----------
    x, w : array
        Arguments of `conv`, of a floating or complex dtype.
    **options
        Those of `conv`.

    Returns
    -------
    float
        The largest difference, relative to the sum of the magnitudes of the terms compared.

    Raises
    ------
    AssertionError
        If that is above 100 times the rounding error of the coarsest dtype involved.
    ValueError
        As `conv` does.
    TypeError
        As `conv` does, and for integers.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv.testing import check_adjoint
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.standard_normal((2, 4, 30)), rng.standard_normal((6, 2, 5))
    >>> check_adjoint(x, w, groups=2, stride=3, padding="same") < 1e-14
    True
    """
    xp, (x, w) = accept(x=x, w=w)
    bound = _bound(x, w)
    with current(x):
        y = conv(x, w, **options)
        geom = forward_call(xp, tuple(x.shape), tuple(w.shape), tuple(Settings(**options))).geom
        g = random_integers(default_rng(0), y)
        whole, size = _inner(xp, g, y)
        layout = options.get("layout", "channels_first")
        back = layout if isinstance(layout, str) else tuple(layout)[::-1]
        transposed = conv_transpose(g, w, output_size=geom.I, **{**options, "layout": back})
        others = {
            "conv_grad_input": _inner(xp, conv_grad_input(g, w, geom.I, **options), x),
            "conv_grad_weight": _inner(xp, conv_grad_weight(g, x, geom.W, **options), w),
        }
        errors = {
            name: _distance(value, whole) / ((size + magnitude) or 1.0)
            for name, (value, magnitude) in others.items()
        }
        # without conjugation on either side, this one holds for complex arrays too
        plain, size = _inner(xp, g, y, conjugate=False)
        value, magnitude = _inner(xp, transposed, x, conjugate=False)
        errors["conv_transpose"] = _distance(value, plain) / ((size + magnitude) or 1.0)
        return _largest(errors, bound)


def _inner(xp: Namespace, a: Array, b: Array, conjugate: bool = True) -> tuple[complex, float]:
    """Return ``sum(conj(a) * b)`` and the sum of the magnitudes, summed as wide as possible."""
    wide = sum_dtype(xp, dtype_name((a * b).dtype))
    a, b = cast(xp, a, wide), cast(xp, b, wide)
    product = (xp.conj(a) if conjugate and "complex" in wide else a) * b
    return complex(xp.sum(product)), float(xp.sum(xp.abs(product)))


def _distance(a: complex, b: complex) -> float:
    """Return ``abs(a - b)``, infinite where that would raise an OverflowError."""
    return math.hypot(a.real - b.real, a.imag - b.imag)


def _bound(*arrays: Array | None) -> float:
    """Return the error that rounding explains."""
    names = [dtype_name(a.dtype) for a in arrays if a is not None]
    if any(name in INTEGER for name in names):
        raise Refusal("floating or complex arrays", ", ".join(names), TypeError)
    return BOUND * max(ROUNDING[real_of(name)] for name in names)


def _largest(errors: dict[str, float], bound: float) -> float:
    """Return the largest error; AssertionError where it is too large, or NaN."""
    worst = max(errors, key=lambda name: (math.isnan(errors[name]), errors[name]))
    if math.isnan(errors[worst]) or errors[worst] > bound:
        listed = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
        raise AssertionError(f"{worst} is wrong: relative errors {listed}, bound {bound:.3g}")
    return errors[worst]
