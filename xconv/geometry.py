"""Every size rule of a convolution, in plain Python integers; no array comes here.

The letters, used in the whole package:

====  ==========================================================
N     samples in the batch
C, c  input channels: of all groups, of one group
K, k  output channels: of all groups, of one group
G     groups
I     input sizes, one per spatial axis
W     kernel sizes, one per spatial axis
O     output sizes, one per spatial axis
====  ==========================================================

Output ``o`` reads input ``q = stride * o + dilation * t - low`` for each kernel position
``t``. ``q`` is a padded coordinate: below 0 and from ``I`` on it lies in the padding.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from .errors import Refusal, shown

Ints = tuple[int, ...]
Range = tuple[int, int]
Pairs = tuple[tuple[int, int], ...]

LARGEST_RANK = (
    30  # arrays have up to 64 axes, and windows have two for each of these and three more
)
PADDING_NAMES = ("valid", "same", "same_lower", "full", "causal")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")


SPATIAL = 3  # the first spatial axis of data as it is computed with: (G, c, N, *I)
ALL = (slice(None),) * SPATIAL  # the index of all axes before it


class Window(NamedTuple):
    """What an algorithm sees of a convolution once its input is padded."""

    O: Ints
    W: Ints
    stride: Ints
    dilation: Ints


class Work(NamedTuple):
    """What one group takes: products, operations of each, numbers copied.

    Small matrices are counted as somewhat larger ones, which take as long. So many numbers are
    `prepared` in memory that all blocks share, and `kept` in one. ``calls`` are those of NumPy for
    all groups together, ``shared`` the numbers of a matrix that is for all of them.
    """

    products: int
    operations: int
    copied: int
    prepared: int
    kept: int
    calls: int
    shared: int


def along(axis: int, cells: int | slice | None) -> tuple[Any, ...]:
    """Return the index that takes `cells` of one axis (None: a new one), all of the others."""
    return (slice(None),) * axis + (cells, Ellipsis)


def resized(shape: Ints, axis: int, size: int) -> Ints:
    """Return a shape with another size of one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def axis_taps(window: Window, axis: int) -> list[slice]:
    """Return, for each kernel position of one axis, the input that all outputs read there."""
    d, s, last = window.dilation[axis], window.stride[axis], window.O[axis] - 1
    return [slice(d * t, d * t + s * last + 1, s) for t in range(window.W[axis])]


@lru_cache(maxsize=256)
def taps(window: Window) -> list[tuple[Any, ...]]:
    """Return, for each kernel position in order, what it multiplies of a block (G, c, N, *L)."""
    axes = (axis_taps(window, a) for a in range(len(window.W)))
    return [ALL + point for point in itertools.product(*axes)]


class Phase(NamedTuple):
    """The cells of one axis that share their position modulo the stride.

    Cells ``offset, offset + stride, ...`` (``cells`` of them) get their gradient from the
    kernel positions ``first, first + step, ...`` (``taps`` of them) alone: a convolution of
    the output's gradient with these, reversed, at stride 1.
    """

    offset: int
    cells: int
    first: int
    step: int
    taps: int
    low: int
    dilation: int


def phase_taps(phases: Iterable[Phase]) -> tuple[slice, ...]:
    """Return the index of the weights (G, k, c, *W) of one phase of each axis."""
    return ALL + tuple(slice(p.first, None, p.step) for p in phases)


class Geometry(NamedTuple):
    """One validated convolution; see the module's text for the letters."""

    N: int
    C: int
    K: int
    G: int
    I: Ints
    W: Ints
    O: Ints
    stride: Ints
    dilation: Ints
    padding: Pairs
    padding_mode: str

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.W)

    @property
    def c(self) -> int:
        """Input channels of one group."""
        return self.C // self.G

    @property
    def k(self) -> int:
        """Output channels of one group."""
        return self.K // self.G

    def reads(self, start: Ints, stop: Ints, first: Ints, last: Ints) -> tuple[Ints, Ints]:
        """Return the padded coordinates that these outputs read at taps ``[first, last)``."""
        axes = range(self.rank)
        s, d, pad = self.stride, self.dilation, self.padding
        begin = tuple(s[a] * start[a] + d[a] * first[a] - pad[a][0] for a in axes)
        end = tuple(s[a] * (stop[a] - 1) + d[a] * (last[a] - 1) + 1 - pad[a][0] for a in axes)
        return begin, end

    def meeting(
        self, axis: int, tap: int, first: int, outputs: int, start: int, cells: int
    ) -> tuple[slice, slice]:
        """Return which of some cells a tap reads, along one axis, and for which of some outputs.

        Cells are padded coordinates from `start` on, outputs those from `first` on.
        """
        s = self.stride[axis]
        # output `first + o` reads the cell `cell + s*o`
        cell = s * first + self.dilation[axis] * tap - self.padding[axis][0] - start
        begin = max(-(cell // s), 0)
        end = max(min((cells - 1 - cell) // s + 1, outputs), begin)
        there = slice(cell + s * begin, cell + s * (end - 1) + 1 if end > begin else 0, s)
        return there, slice(begin, end)

    def read_range(self, axis: int) -> tuple[int, int]:
        """Return the padded coordinates from the first to the last that any output reads."""
        s, d, (low, _) = self.stride[axis], self.dilation[axis], self.padding[axis]
        return -low, s * (self.O[axis] - 1) + d * (self.W[axis] - 1) + 1 - low

    def next_read(self, axis: int, q: int) -> int | None:
        """Return the first padded coordinate from `q` on that any output reads; None: none is."""
        s, d, (low, _) = self.stride[axis], self.dilation[axis], self.padding[axis]
        taps = [d * t - low for t in range(self.W[axis])]
        first = [(max(-((at - q) // s), 0), at) for at in taps]  # the output that reads it there
        return min((s * o + at for o, at in first if o < self.O[axis]), default=None)

    @lru_cache(maxsize=256)  # noqa: B019 - geometries are values, and few
    def skipping(self) -> tuple[Geometry, tuple[slice, ...] | None]:
        """Return the convolution of the input cells that one-tap axes read at all, and their index.

        It is one of (G, c, N, *I), or None for all of it. With zeros padding, an axis of one tap
        and stride s is one of stride 1 on every s-th cell.
        """
        cells = [slice(None)] * self.rank
        I, stride, padding = list(self.I), list(self.stride), list(self.padding)
        for a, (low, _) in enumerate(self.padding):
            if self.W[a] == 1 and self.padding_mode == "zeros":
                before, first = divmod(-low, self.stride[a])
                cells[a] = slice(first, None, self.stride[a])
                I[a] = len(range(first, self.I[a], self.stride[a]))
                stride[a], padding[a] = 1, (-before, self.O[a] - I[a] + before)
        geom = self._replace(I=tuple(I), stride=tuple(stride), padding=tuple(padding))
        return geom, ((*ALL, *cells) if geom.stride != self.stride else None)

    def phases(self, axis: int, start: int, stop: int) -> list[Phase]:
        """Phases of the padded coordinates ``[start, stop)``; cells in none have gradient 0.

        With cell ``q = stride * m + r - low``, the taps with ``dilation * t % stride == r``
        reach it from ``o = m - (dilation * t - r) / stride``.
        """
        s, d, low = self.stride[axis], self.dilation[axis], self.padding[axis][0]
        common = math.gcd(s, d)
        step, dilation = s // common, d // common
        phases = []
        for first in range(min(self.W[axis], step)):
            r = d * first % s
            q = start + (r - low - start) % s
            if q < stop:
                taps = len(range(first, self.W[axis], step))
                shift = (q + low - r) // s - (d * first - r) // s - (taps - 1) * dilation
                cells = len(range(q, stop, s))
                phases.append(Phase(q - start, cells, first, step, taps, -shift, dilation))
        return phases

    def part(self, G: int, k: int, N: int, start: Ints, stop: Ints) -> Geometry:
        """Return the convolution of some groups and samples to a box of the outputs alone."""
        sizes = zip(self.stride, self.padding, start, strict=True)
        return self._replace(
            N=N,
            C=G * self.c,
            K=G * k,
            G=G,
            O=tuple(b - a for a, b in zip(start, stop, strict=True)),
            padding=tuple((low - s * first, high) for s, (low, high), first in sizes),
        )

    def with_samples(self, N: int) -> Geometry:
        """Return the same convolution of `N` samples."""
        return self._replace(N=N)

    def per_sample(self) -> Geometry:
        """Return one group of all samples as one sample whose groups they are."""
        return self._replace(N=1, C=self.N * self.c, K=self.N * self.k, G=self.N)

    def backwards(self, phases: tuple[Phase, ...]) -> Geometry:
        """Return the convolution that gives the input gradient at one phase of each axis."""
        return Geometry(
            N=self.N,
            C=self.K,
            K=self.C,
            G=self.G,
            I=self.O,
            W=tuple(p.taps for p in phases),
            O=tuple(p.cells for p in phases),
            stride=(1,) * self.rank,
            dilation=tuple(p.dilation for p in phases),
            padding=tuple(
                (p.low, p.cells + (p.taps - 1) * p.dilation - size - p.low)
                for p, size in zip(phases, self.O, strict=True)
            ),
            padding_mode="zeros",
        )

    def exchanged(self) -> Geometry:
        """Return the convolution whose input gradient is this one's, with g and w exchanged.

        A cell's gradient is a sum over outputs ``o`` and taps ``t`` with ``stride * o + dilation *
        t`` of one value, in which g and w have the same part: input channels are then samples.
        """
        return self._replace(
            N=self.c,
            C=self.N * self.G,
            W=self.O,
            O=self.W,
            stride=self.dilation,
            dilation=self.stride,
        )


def index(value: Any, what: str, kinds: str = "an int") -> int:
    """Return `value` as an int of 64 bits; bools, floats and everything else are refused."""
    number = value if type(value) is int else _index(value)
    if number is None:
        raise Refusal(f"{what} to be {kinds}", shown(value), TypeError)
    if not -(2**63) <= number < 2**63:
        raise Refusal(f"{what} to fit 64 bits", shown(number))
    return number


def _index(value: Any) -> int | None:
    """Return the int that a value stands for, if it does and is no bool."""
    with contextlib.suppress(Exception):  # whatever an object's own methods raise
        if not isinstance(value, bool) and not str(getattr(value, "dtype", None)).endswith("bool"):
            return operator.index(value)
    return None


def named(value: Any, what: str, names: tuple[str, ...], hint: str = "") -> str:
    """Return `value` as a string that is one of the names."""
    if isinstance(value, str):
        text = str.__str__(value)  # of a subclass too, whose own methods may do anything
        if text in names:
            return text
    kind = ValueError if isinstance(value, str) else TypeError
    raise Refusal(f"{what} to be one of {names}{hint}", shown(value), kind)


def sizes(value: Any, what: str, rank: int | None = None) -> Ints:
    """Return a tuple of sizes, one per axis; an int is refused."""
    if not isinstance(value, (tuple, list)):
        rule = f"{what} to be a tuple, one int per axis, such as (3, 3)"
        raise Refusal(rule, shown(value), TypeError)
    result = tuple(index(v, f"every entry of {what}") for v in value)
    if rank is not None and len(result) != rank:
        raise Refusal(f"{what} with one int per axis, {rank} in all", f"{result}")
    if not result:
        raise Refusal(f"{what} with at least one axis", f"{result}")
    return result


def per_axis(value: Any, what: str, rank: int, least: int) -> Ints:
    """Return an int, or one int per axis, as one int per axis of at least `least`."""
    if isinstance(value, (tuple, list)):
        result = sizes(value, what, rank)
    else:
        result = (index(value, what, "an int or a tuple of ints"),) * rank
    if min(result) < least:
        raise Refusal(f"every {what} to be at least {least}", f"{what} {result}")
    return result


def padding_pairs(value: Any, rank: int) -> str | Pairs:
    """Return a padding as its name or as ``(low, high)`` per axis."""
    if isinstance(value, str):
        what = "padding, unless it is ints or pairs,"
        text = str.__str__(value)
        mode = f" (padding_mode={text!r} says what it holds)" if text in PADDING_MODES else ""
        return named(value, what, PADDING_NAMES, mode)
    if not isinstance(value, (tuple, list)):
        kinds = f"an int, a tuple of ints or pairs, or one of {PADDING_NAMES}"
        return ((index(value, "padding", kinds),) * 2,) * rank
    if len(value) != rank:
        raise Refusal(f"padding with one int or pair per axis, {rank} in all", shown(value))
    pairs = []
    for entry in value:
        if isinstance(entry, (tuple, list)):
            if len(entry) != 2:
                raise Refusal("every pair of padding to be (low, high)", shown(entry))
            low, high = (index(v, "every entry of padding") for v in entry)
        else:
            low = high = index(entry, "every entry of padding")
        pairs.append((low, high))
    if len({isinstance(entry, (tuple, list)) for entry in value}) > 1:
        raise Refusal("padding to be all ints or all pairs", shown(value))
    return tuple(pairs)


def named_padding(name: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Resolve the padding called `name` on one axis."""
    reach = dilation * (kernel - 1)
    if name in ("same", "same_lower"):
        total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if name == "same" else (large, small)
    return {"valid": (0, 0), "full": (reach, reach), "causal": (reach, 0)}[name]


class Options(NamedTuple):
    """The options that a geometry depends on, as hashable plain values."""

    stride: Ints
    padding: str | Pairs
    dilation: Ints
    groups: int
    padding_mode: str


def options(
    rank: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any = 1,
    padding_mode: Any = "zeros",
) -> Options:
    """Check the options that need no sizes, and give each its one form."""
    if rank > LARGEST_RANK:
        raise Refusal(f"at most {LARGEST_RANK} spatial axes", f"{rank}")
    mode = named(padding_mode, "padding_mode", PADDING_MODES)
    if (G := index(groups, "groups")) < 1:
        raise Refusal("groups to be at least 1", f"groups {G}")
    return Options(
        per_axis(stride, "stride", rank, 1),
        padding_pairs(padding, rank),
        per_axis(dilation, "dilation", rank, 1),
        G,
        mode,
    )


def resolved(I: Ints, W: Ints, opts: Options) -> Pairs:
    """Return ``(low, high)`` per axis, checked against the padding mode."""
    if min(W) < 1:
        raise Refusal("every kernel size to be at least 1", f"kernel size {W}")
    if min(I) < 0:
        raise Refusal("every input size to be at least 0", f"input size {I}")
    if isinstance(opts.padding, str):
        name = opts.padding
        pairs = tuple(
            named_padding(name, *axis)
            for axis in zip(I, W, opts.stride, opts.dilation, strict=True)
        )
    else:
        pairs = opts.padding
    mode = opts.padding_mode
    for size, pair in zip(I, pairs, strict=True):
        widest = max(pair)
        if mode == "zeros" or widest <= 0:
            continue
        if mode == "reflect" and widest >= size:
            rule = "reflect padding below the input size"
        elif mode in ("symmetric", "circular") and widest > size:
            rule = f"{mode} padding of at most the input size"
        elif size < 1:
            rule = "an input size of at least 1 to replicate"
        else:
            continue
        raise Refusal(rule, f"input size {I}, padding {pairs}")
    return pairs


def output_size(I: Ints, W: Ints, opts: Options) -> tuple[Ints, Pairs]:
    """Return the output sizes and the padding that gives them."""
    pairs = resolved(I, W, opts)
    O = tuple(
        (size + low + high - d * (kernel - 1) - 1) // s + 1
        for size, kernel, (low, high), s, d in zip(
            I, W, pairs, opts.stride, opts.dilation, strict=True
        )
    )
    if min(O) < 1:
        raise Refusal(
            "every output size, (I + low + high - dilation*(W - 1) - 1) // stride + 1, above 0",
            f"output size {O} from input size {I}, kernel size {W}, padding {pairs}, "
            f"stride {opts.stride}, dilation {opts.dilation}",
        )
    return O, pairs


@lru_cache(maxsize=256)
def geometry(N: int, C: int, K: int, I: Ints, W: Ints, opts: Options) -> Geometry:
    """Return the geometry of a convolution of these sizes.

    A stride between single outputs and a dilation of single taps move nothing: they become
    1, so that no later number can be huge.
    """
    G = opts.groups
    if C % G or K % G:
        raise Refusal(
            "groups to divide both numbers of channels",
            f"groups {G}, channels {C} and {K}",
        )
    O, pairs = output_size(I, W, opts)
    stride = tuple(s if o > 1 else 1 for s, o in zip(opts.stride, O, strict=True))
    dilation = tuple(d if w > 1 else 1 for d, w in zip(opts.dilation, W, strict=True))
    return Geometry(N, C, K, G, I, W, O, stride, dilation, pairs, opts.padding_mode)


@lru_cache(maxsize=256)
def transposed_size(
    O: Ints,
    W: Ints,
    opts: Options,
    output_padding: Ints | None,
    output_size_: Ints | None,
) -> Ints:
    """Return the result sizes of a transposed convolution of an input of sizes `O`.

    `output_padding` is None where it was left at its default, and never negative.
    """
    if min(O) < 1 or min(W) < 1:
        raise Refusal(
            "every input and kernel size to be at least 1", f"input size {O}, kernel size {W}"
        )
    extra = output_padding or (0,) * len(O)
    if any(e >= s for e, s in zip(extra, opts.stride, strict=True)):
        raise Refusal(
            "0 <= output_padding < stride", f"output_padding {extra}, stride {opts.stride}"
        )
    if opts.padding in ("same", "same_lower"):
        if any(extra):
            raise Refusal(
                f"output_padding 0 with padding {opts.padding!r}", f"output_padding {extra}"
            )
        size = tuple(o * s for o, s in zip(O, opts.stride, strict=True))
    else:
        pairs = opts.padding
        if isinstance(pairs, str):  # these names do not depend on the input's size
            pairs = tuple(
                named_padding(pairs, 0, w, s, d)
                for w, s, d in zip(W, opts.stride, opts.dilation, strict=True)
            )
        size = tuple(
            (o - 1) * s + d * (w - 1) + 1 - low - high + e
            for o, w, s, d, (low, high), e in zip(
                O, W, opts.stride, opts.dilation, pairs, extra, strict=True
            )
        )
    if output_size_ is not None:
        if output_padding is not None and size != output_size_:
            raise Refusal(
                "output_padding and output_size to agree, or just one of them",
                f"output_padding {extra}, which gives the size {size}, output_size {output_size_}",
            )
        size = output_size_
    if min(size) < 0:
        raise Refusal(
            "every result size of the transposed convolution to be at least 0",
            f"result size {size} from input size {O}, kernel size {W}, padding {opts.padding}, "
            f"stride {opts.stride}, dilation {opts.dilation}, output_padding {extra}",
        )
    back, _ = output_size(size, W, opts)
    if back != O:
        raise Refusal(
            "a result size that the convolution maps back to the input size",
            f"result size {size}, which gives {back}, input size {O}, kernel size {W}, "
            f"padding {opts.padding}, stride {opts.stride}, dilation {opts.dilation}",
        )
    return size


def halved(shape: Ints, order: Ints) -> Iterator[Ints]:
    """Yield a shape, then ever smaller ones: the entries in `order` halved, each down to 1."""
    current = list(shape)
    yield shape
    for axis in order:
        while current[axis] > 1:
            current[axis] = -(-current[axis] // 2)
            yield tuple(current)


def parts(axis: range) -> Iterator[Range]:
    """Cut ``[axis.start, axis.stop)`` into ranges of at most ``axis.step``."""
    for a in axis:
        yield a, min(a + axis.step, axis.stop)


def slab(geom: Geometry, o: Ints, w: Ints) -> int:
    """Count the input cells that a box of outputs reads at a box of taps."""
    spans = zip(geom.stride, o, geom.dilation, w, strict=True)
    return math.prod(s * (size - 1) + d * (taps - 1) + 1 for s, size, d, taps in spans)
