"""What a method may be wrong by, from the theory of rounding errors, and the README's table of it.

A contraction is a sum of products of numbers of two arrays. Bounds are for magnitudes of at most 1:
they are to be multiplied by the largest of each array. u is the unit roundoff; gamma(n) =
n*u / (1 - n*u) bounds n roundings one after the other.

[1] N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, SIAM, 2002.
[2] B. Barabasz, A. Anderson, K. M. Soodhalter and D. Gregg, Error Analysis and Improving the
    Accuracy of Winograd Convolution for Deep Neural Networks, https://arxiv.org/abs/1803.10986.

`python tests/bounds.py` prints the table.
"""

import sys
from functools import cache
from itertools import product
from math import log2, prod, sqrt

import numpy as np

import xconv
from xconv import winograd

ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
SUMS = {"float16": "float32", "complex64": "float32", "complex128": "float64"}  # of real numbers


def gamma(n: int, dtype: str) -> float:
    """n roundings of numbers of this dtype; a complex one has two parts, each of two products."""
    parts = 2 if "complex" in dtype else 1
    small = parts * n * ROUNDOFF[SUMS.get(dtype, dtype)]
    return sqrt(parts) * small / (1 - small)


def direct(terms: int, dtype: str) -> float:
    """`windows` and `taps`: a sum of products, in any order ([1], section 3.1)."""
    return terms * gamma(terms, dtype)


@cache
def amplification(W: tuple[int, ...], gradient: bool = False) -> float:
    """What Winograd's transforms make of ones if nothing cancels, for a channel, or for dw a tile.

    That is the infinity norm of |A^T| (|G| 1 * |B^T| 1), with G and A exchanged for dw ([2]).
    Along several axes the matrices are Kronecker products, so it is a product too.
    """
    total = 1.0
    for taps, outputs in zip(W, winograd._outputs(W), strict=True):
        tile = winograd.matrices(taps, outputs)
        a, g, b = (abs(np.array(tile[n], float)) for n in ("outputs", "weights", "inputs"))
        if gradient:
            a, g = g.T, a.T
        total *= (a @ (g.sum(axis=1) * b.sum(axis=1))).max()
    return total


def tiles(W: tuple[int, ...], terms: int, dtype: str, gradient: bool = False) -> float:
    """`winograd`: `terms` channels, or for dw tiles of all samples.

    Each of three transforms sums at most the points of a tile, with rounded coefficients.
    """
    points = prod(m + w - 1 for m, w in zip(winograd._outputs(W), W, strict=True))
    return terms * amplification(W, gradient) * gamma(3 * (points + 1) + terms, dtype)


def spectra(terms: int, cells: int, taps: int, dtype: str) -> float:
    """`fft`: `terms` channels of so many cells and taps; for dw samples, and outputs for taps.

    A transform of length L is wrong by e = log2(L) * eta in the 2-norm, eta = u + gamma(4) *
    (sqrt(2) + u) ([1], section 24.1, for powers of 2), and by 2*u more for each axis along which it
    is scaled, here up to four. Two of them and the products are wrong by
    (2*e + sqrt(2) * gamma(2*terms + 4)) * ||x||_2 * ||w||_2, the way back by e * ||x||_2 * ||w||_1.
    """
    real = SUMS.get(dtype, dtype)
    u = ROUNDOFF[real]
    e = (log2(max(cells, 1)) + 4) * (u + gamma(4, real) * (sqrt(2) + u))  # at most 16 times longer
    e += 2 * 4 * u
    products = 2 * e + sqrt(2) * gamma(2 * terms + 4, real)
    return terms * sqrt(cells) * (products * sqrt(taps) + e * taps)


# -- the table

CHANNELS = (3, 64, 512)
KERNEL = (3, 3)
ROWS = [*product(("windows", "taps", "winograd", "fft"), ("float32", "float64"))]


def errors(method: str, dtype: str, channels: int) -> tuple[float, float]:
    """The largest error of a layer with numbers uniform in [-1, 1], and its bound.

    Both are parts of the largest result, which is known to the 64 bits of a long double.
    """
    rng = np.random.default_rng(channels)
    shapes = (2, channels, 12, 12), (8, channels, *KERNEL)
    x, w = (rng.uniform(-1, 1, shape).astype(dtype) for shape in shapes)
    y = xconv.conv(x, w, method=method)
    assert np.finfo(np.longdouble).eps < np.finfo(dtype).eps
    exact = np.zeros(y.shape, np.longdouble)
    for i, j in np.ndindex(KERNEL):
        cells = x[:, :, i : i + y.shape[2], j : j + y.shape[3]].astype(np.longdouble)
        exact += np.einsum("ncij,kc->nkij", cells, w[:, :, i, j])
    bound = {
        "winograd": tiles(KERNEL, channels, dtype),
        "fft": spectra(channels, 12 * 12, prod(KERNEL), dtype),
    }.get(method, direct(channels * prod(KERNEL), dtype))
    largest = abs(exact).max()
    return float(abs(y - exact).max() / largest), float(bound / largest)


def table() -> str:
    lines = [
        "| method | dtype |" + "".join(f" n = {prod(KERNEL) * c} |" for c in CHANNELS),
        "|---|---|" + "---|" * len(CHANNELS),
    ]
    for row in ROWS:
        cells = ["{:.1e}, {:.0e}".format(*errors(*row, c)) for c in CHANNELS]
        lines.append("| `{}` | {} | ".format(*row) + " | ".join(cells) + " |")
    return "\n".join(lines).replace("e-0", "e-") + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
