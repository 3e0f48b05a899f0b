"""What a call that xconv accepted has to return.

Arguments are read as the documentation says, however oddly they are spelled: sizes and dtypes
follow by its rules, and where the numbers are few and small, the results are those of the oracle.
"""

import math
import operator
from typing import Any, NamedTuple

import numpy as np
import oracle
from array_api_compat import array_namespace
from backends import Backend
from cases import Case, from_layout, order, to_layout

ARRAYS = ("x", "w", "b", "dy", "ddx", "ddw", "ddb", "cols")
Ints = tuple[int, ...]


class Right(NamedTuple):
    """A result: `exact` are its numbers in a wide type, None where it would take long to count."""

    shape: Ints
    dtype: str
    exact: np.ndarray | None


def name_of(dtype: Any) -> str:
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


def whole(value: Any) -> int:
    assert not isinstance(value, bool | np.bool_), "a bool was taken for an int"
    return operator.index(value)


def axes(value: Any, rank: int) -> Ints:
    several = value if isinstance(value, tuple | list) else (value,) * rank
    assert len(several) == rank
    return tuple(map(whole, several))


def sides(value: Any, *sizes: Ints) -> tuple[Ints, ...]:
    """Padding (low, high) of each axis, of sizes I, W, stride and dilation."""
    rank = len(sizes[0])
    if isinstance(value, str):
        return tuple(oracle.pads(str.__str__(value), *one) for one in zip(*sizes, strict=True))
    if isinstance(value, tuple | list) and isinstance(value[0], tuple | list):
        assert len(value) == rank
        return tuple(axes(pair, 2) for pair in value)
    return tuple((side, side) for side in axes(value, rank))


class Meaning:
    """The convolution that a call is about, or whose transpose it is: letters as in the package.

    ``given`` are the positional arguments by name; a layer's `weight` counts as its w.
    """

    def __init__(self, name: str, given: dict[str, Any], options: dict[str, Any]) -> None:
        self.name, self.given, self.options = name, given, options
        self.transposed = "ranspose" in name
        self.arrays = {role: given[role] for role in ARRAYS if given.get(role) is not None}
        kernel = given.get("kernel_size")
        rank = self.arrays["w"].ndim - 2 if kernel is None else len(kernel)
        samples = [self.arrays[role].ndim for role in ("x", "dy") if role in self.arrays]
        samples += [a.ndim + rank - 1 for role, a in self.arrays.items() if role == "cols"]
        self.batched = samples[:1] in ([], [rank + 2])
        ones, layout = (1,) * (rank + 2), options.get("layout", "channels_first")
        self.form = Case("", ones, ones, layout=layout, batched=self.batched)
        self.W = axes(kernel, rank) if kernel is not None else self.shape("w")[2:]
        self.G, self.stride, self.dilation = (
            whole(options.get("groups", 1)),
            axes(options.get("stride", 1), rank),
            axes(options.get("dilation", 1), rank),
        )
        self.O = () if not self.transposed else self.size("x", rank)
        self.I = self.result_size(self.O) if self.transposed else self.size("x", rank)
        padding = options.get("padding", 0)
        self.padding = sides(padding, self.I, self.W, self.stride, self.dilation)
        steps = zip(self.I, self.W, self.stride, self.dilation, self.padding, strict=True)
        O = tuple((i + sum(p) - d * (w - 1) - 1) // s + 1 for i, w, s, d, p in steps)
        assert min(O) >= 1 and self.O in ((), O), f"{O} windows"
        self.O = O
        self.N, self.C, self.K = self.counts()

    def shape(self, role: str) -> Ints:
        """The canonical shape of an array."""
        return self.canonical(role, np.broadcast_to(0, self.arrays[role].shape)).shape

    def canonical(self, role: str, a: np.ndarray) -> np.ndarray:
        role = role.removeprefix("d").removeprefix("d")
        return a if role in ("b", "cols") else from_layout(self.form, role, a)

    def size(self, role: str, rank: int) -> Ints:
        """The spatial sizes of x, which is an array or not there."""
        if role in self.arrays:
            return self.shape(role)[2:]
        return axes(self.given["input_size"], rank)

    def result_size(self, O: Ints) -> Ints:
        """The size of a transposed convolution."""
        rank, padding = len(O), self.options.get("padding", 0)
        if self.options.get("output_size") is not None:
            return axes(self.options["output_size"], rank)
        if isinstance(padding, str) and str.__str__(padding).startswith("same"):
            return tuple(o * s for o, s in zip(O, self.stride, strict=True))
        more = axes(self.options.get("output_padding", 0), rank)
        pads = sides(padding, O, self.W, self.stride, self.dilation)  # of no name that reads O
        steps = zip(O, self.W, self.stride, self.dilation, pads, more, strict=True)
        return tuple((o - 1) * s + d * (w - 1) + 1 - sum(p) + e for o, w, s, d, p, e in steps)

    def counts(self) -> Ints:
        """N, C and K."""
        N = next((self.shape(role)[0] for role in ("x", "dy") if role in self.arrays), 1)
        if "in_channels" in self.given:
            C, K = whole(self.given["in_channels"]), whole(self.given["out_channels"])
            return (N, K, C) if self.transposed else (N, C, K)
        if "w" in self.arrays:
            K, c = self.shape("w")[:2]
            return N, c * self.G, K
        if "cols" in self.arrays:
            shape = self.arrays["cols"].shape
            return shape[0] if self.batched else 1, shape[-2] // math.prod(self.W), 0
        C = self.shape("x")[1] if "x" in self.arrays else 0
        return N, C, self.shape("dy")[1] if "dy" in self.arrays else 0

    # -- the results: y or ddy, dx, dw, db, cols

    def results(self) -> list[str]:
        if self.name in ("unfold", "conv_grad_input", "conv_grad_weight", "fold"):
            return {"unfold": ["cols"], "conv_grad_weight": ["dw"]}.get(self.name, ["dx"])
        if self.name in ("Conv", "ConvTranspose"):
            return ["y", "dx", "dw", "db"]
        if "double" in self.name:
            return ["ddy", "dx", "dw"]
        return ["dx", "dw", "db"] if "backward" in self.name else ["y"]

    def right(self, backend: Backend) -> dict[str, Right | None]:
        """Every result, None where it is not asked for."""
        exact = self.exact(backend)
        found = {
            result: Right(self.result_shape(result), self.dtype(result), exact.get(result))
            for result in self.results()
        }
        asked = dict(zip(("dx", "dw", "db"), self.options.get("output_mask", ()), strict=False))
        asked["db"] = asked.get("db", True) and self.options.get("bias", True)
        return {result: one if asked.get(result, True) else None for result, one in found.items()}

    def role(self, result: str) -> str:
        """Of which array of a case a result has the form."""
        role = result.removeprefix("d").removeprefix("d")
        return "nw" if role == "w" and self.options.get("per_sample", False) else role

    def result_shape(self, result: str) -> Ints:
        inner, outer = (self.N, self.C, *self.I), (self.N, self.K, *self.O)
        if self.transposed:
            inner, outer = outer, inner
        if result == "cols":
            columns = (self.N, self.C * math.prod(self.W), math.prod(self.O))
            return columns[not self.batched :]
        role, weights = self.role(result), (self.K, self.C // self.G, *self.W)
        shapes = {"x": inner, "y": outer, "b": outer[1:2], "w": weights, "nw": (self.N, *weights)}
        shape = shapes[role]
        if not self.batched and role in ("x", "y", "nw"):
            shape = shape[1:]
        return tuple(shape[axis] for axis in order(self.form, role))

    def dtype(self, result: str) -> str:
        own = {role: a.dtype for role, a in self.arrays.items()}
        xp = array_namespace(max(self.arrays.values(), key=lambda a: type(a) is not np.ndarray))
        asked = self.options.get("dtype")
        if "in_channels" in self.given:
            like = self.options.get("like")
            own["w"] = np.dtype("float32") if like is None else like.dtype

        def promoted(*roles: str) -> str:
            return name_of(xp.result_type(*(own[role] for role in roles)))

        pairs = {"y": ("x", "w"), "dx": ("dy", "w"), "dw": ("dy", "x")}
        if "cols" in (result, *own):
            return name_of(own["x" if result == "cols" else "cols"])
        if result == "db":
            return name_of(own["w" if "in_channels" in self.given else "dy"])  # a layer's bias
        if result == "y" or self.name in ("conv_grad_input", "conv_grad_weight"):
            return promoted(*pairs[result]) if asked is None else name_of(np.dtype(asked))
        kept = name_of(own[result.removeprefix("d")])
        if "int" not in kept:  # a gradient is of its array's dtype, if that is no integer
            return kept
        if result == "ddy":
            return promoted(*own.keys() - {"dy"})
        one, other = pairs[result]
        return promoted(one, f"dd{other}" if f"dd{other}" in own else other)

    # -- numbers

    def exact(self, backend: Backend) -> dict[str, np.ndarray]:
        """The results in a wide type, if they are cheap and exact in every order of the sums."""
        sides = (abs(side) for pair in self.padding for side in pair)
        large = max(*self.I, *self.O, *self.W, *sides) > 50
        method = self.options.get("method", "auto")
        if large or math.prod(self.O) * math.prod(self.W) > 2000 or method in ("winograd", "fft"):
            return {}
        if "double" in self.name or "in_channels" in self.given or "explain" in self.name:
            return {}
        if not all(backend.same_kind(a) for a in self.arrays.values()):
            return {}  # Dask beside NumPy
        plain = {role: backend.to_numpy(a) for role, a in self.arrays.items()}
        integers = [a.dtype.kind in "iu" for a in plain.values()]
        small = all(np.all(np.abs(a.astype(complex)) <= 8) for a in plain.values())
        if not small and not (all(integers) and self.options.get("dtype") is None):
            return {}
        found = self.counted({role: self.canonical(role, a) for role, a in plain.items()})
        return {
            result: a if result in ("db", "cols") else to_layout(self.form, self.role(result), a)
            for result, a in found.items()
        }

    def counted(self, a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The canonical results by the oracle."""
        taps, mode = math.prod(self.W), str.__str__(self.options.get("padding_mode", "zeros"))
        shape = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        o = {**shape, "padding_mode": mode, "groups": self.G}
        x, w, b, dy = (a.get(role) for role in ("x", "w", "b", "dy"))
        # every tap of a window is what a kernel finds that is 1 there
        one = np.eye(taps, dtype=np.int64).reshape(taps, 1, *self.W)
        match self.name:
            case "unfold":
                cols = oracle.conv(x.reshape(x.shape[0] * x.shape[1], 1, *self.I), one, **o)
                return {"cols": cols.reshape(self.result_shape("cols"))}
            case "fold":
                cols = a["cols"].reshape(self.N * self.C, taps, *self.O)
                dx = oracle.conv_transpose(cols, one, output_size=self.I, **o)
                return {"dx": dx.reshape(self.N, self.C, *self.I)}
            case "conv_grad_input":
                return {"dx": oracle.grad_input(dy, w.conj(), self.I, **o)}
            case "conv_grad_weight":
                each = self.options.get("per_sample", False)
                return {"dw": oracle.grad_weight(dy, x.conj(), self.W, per_sample=each, **o)}
            case "conv_backward":
                return oracle.backward(dy, x, w, **o)._asdict()
            case "conv_transpose_backward":
                return oracle.transpose_backward(dy, x, w, **o)._asdict()
        if self.transposed:
            return {"y": oracle.conv_transpose(x, w, b, output_size=self.I, **o)}
        return {"y": oracle.conv(x, w, b, **o)}
