"""How a contraction is cut into blocks that fit a workspace, from its geometry alone.

A contraction sums over the index space (group, sample, output position, kernel position, input
channel, output channel). A block is a box of it; the plan gives the box's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from . import winograd
from .errors import Refusal
from .geometry import Geometry, Ints, Range, Window, Work, halved, parts, slab
from .methods import TRAITS, Algorithm
from .namespace import most_apart

MIB = 2**20

# Sums over channels and taps are cut only where one output position would not fit, and never
# into parts below this many terms.
SHORTEST_SUM = 2**16

# A contraction is cut into this many blocks, so that cores find work, if it is enough for that:
# NumPy's calls must be long, as threads wait for each other between them, and the longer the more
# threads there are. Where a block is many short calls there is to be twice as much. Products
# shorter than POSITIONS or CHANNELS would be slow.
TASKS = 4
GRAIN = 28_000_000  # operations from which on there are two blocks; from 8 times as many on, four
LITTLE = 2 * GRAIN  # operations of a block below which it had better be larger
MOVED = 10  # a number moved counts as so many
FEW = 32  # output channels below which operations take twice as long
POINTER = 8  # bytes
SMALL = 4  # an operation of a product of a few rows
POSITIONS = 256
CHANNELS = 64
MOST = 2**22  # products of one contraction: more take minutes in Python alone
# Kernels of a bank, whose transforms are to stay in a core's cache: the most that fit a block. A
# weight gradient, which has their sums as well, takes the fewest.
BANK = (64, 32)
HELD = 16 * MIB  # bytes of transformed data that fit the cache of all cores
KEPT = 2**13  # numbers of a constant matrix that may be kept whatever the limits


class Limits(NamedTuple):
    """Bytes that a call may use, and that one block should.

    What needs memory of its own beside its contractions gives these one of several equal shares.
    There are to be so many `tasks` where the work is enough for them.
    """

    allowed: int
    block: int
    shares: int = 1
    tasks: int = TASKS

    @property
    def ample(self) -> bool:
        """Whether threads may keep memory between blocks: no less is allowed than by default."""
        return self.allowed >= CPU.allowed

    @property
    def workspace(self) -> int:
        """Bytes that a contraction may use."""
        return self.allowed // self.shares


# Blocks of 8 MiB: large enough for calls that are long, small enough for a shared cache. A GPU
# wants few and large ones: every call of CuPy takes 10 microseconds or more.
CPU = Limits(64 * MIB, 8 * MIB)
GPU = Limits(512 * MIB, 512 * MIB, tasks=1)


class Plan(NamedTuple):
    """Sizes of the parts into which each index is cut, and what they take.

    ``g, k, n, o`` are those of a block, ``c, w`` of the sums within it. ``shared_g`` and
    ``shared_k`` are the groups and output channels whose weights are prepared at once, for all
    blocks. ``shared`` and ``block`` are in bytes.
    """

    shared_g: int
    shared_k: int
    g: int
    k: int
    n: int
    o: Ints
    c: int
    w: Ints
    shared: int
    block: int

    def terms(self, geom: Geometry) -> int:
        """Count the products of a block of results."""
        return count((geom.c, *geom.W), (self.c, *self.w))

    def blocks(self, geom: Geometry) -> int:
        """Count the blocks of samples and outputs, for each part of groups and output channels."""
        return count((geom.G, geom.k, geom.N, *geom.O), (self.g, self.k, self.n, *self.o))

    def products(self, geom: Geometry) -> int:
        """Count the products of all blocks."""
        return self.terms(geom) * self.blocks(geom)


@lru_cache(maxsize=256)
def at_once(shared: int, block: int, limits: Limits, available: int) -> int:
    """How many blocks of so many bytes, beside what they share, can be in the works at once."""
    return max(1, min(available, (limits.workspace - shared) // max(block, 1)))


def count(whole: Iterable[int], sizes: Iterable[int]) -> int:
    """Count the parts into which all axes together are cut."""
    return math.prod(-(-total // size) for total, size in zip(whole, sizes, strict=True))


def boxes(axes: Sequence[range]) -> Iterator[tuple[Range, ...]]:
    """Yield all combinations of the parts of some axes, those of the last axis in a row.

    There may be a great many, even of one axis, so no list is made of them.
    """
    if not axes:
        yield ()
        return
    for part in parts(axes[0]):
        for others in boxes(axes[1:]):
            yield part, *others


def _first(shapes: Iterable[Ints], fits: Callable[[Ints], bool]) -> Ints:
    """Return the first shape that fits, or else the last."""
    shape: Ints = ()
    for shape in shapes:
        if fits(shape):
            break
    return shape


def _check(needed: int, limits: Limits) -> None:
    if needed > limits.workspace:
        raise Refusal(
            "max_workspace to hold at least one output position of one sample",
            f"max_workspace {limits.allowed} bytes, needed {needed * limits.shares} bytes",
        )


def check_number(products: int, limits: Limits) -> None:
    """Refuse what would take far too many products."""
    if products > MOST:
        raise Refusal(
            f"at most {MOST} products of blocks (a larger max_workspace makes fewer)",
            f"{products} products, max_workspace {limits.allowed} bytes",
        )


def _operations(geom: Geometry) -> int:
    """Count the multiplications and additions of a contraction, done directly."""
    return 2 * geom.N * geom.K * math.prod(geom.O) * geom.c * math.prod(geom.W)


def _work(geom: Geometry, moved: int) -> int:
    """Count the operations of a contraction that moves so many numbers, as many as take as long."""
    return _operations(geom) * (2 if geom.k < FEW else 1) + MOVED * moved


def _fed(
    whole: Ints,
    shape: Ints,
    work: int,
    smallest: Ints,
    wanted: int,
    grain: int = GRAIN,
    first: int = 0,
) -> Ints:
    """Halve a block, its axes in turn, until there are enough tasks for the work.

    An axis is not cut below its entry in `smallest`; one is the `first`, the others follow in turn.
    """
    current = list(shape)
    for axis in sorted(range(len(smallest)), key=lambda axis: axis != first):
        while current[axis] >= 2 * max(smallest[axis], 1):
            tasks = count(whole, current)
            if tasks >= wanted or work < tasks**3 * grain:
                return tuple(current)
            current[axis] = -(-current[axis] // 2)
    return tuple(current)


def _widest(geom: Geometry, algorithm: Algorithm, most: int) -> Ints:
    """Return the most outputs of a block, on which prepared weights may depend.

    With one group and channel it is to have at most so many numbers, but for cells that no output
    reads.
    """

    def numbers(o: Ints) -> int:
        window = Window(o, geom.W, geom.stride, geom.dilation)
        return algorithm.workspace(1, 1, window, 1, 1) + 3 * math.prod(o)

    return _first(halved(geom.O, tuple(range(geom.rank))), lambda o: numbers(o) <= most)


def _in_tiles(geom: Geometry, algorithm: Algorithm, o: Ints, fits: Callable[[Ints], bool]) -> Ints:
    """Make a block larger, if that fits: its outputs fill the tiles that it takes anyway."""
    tile = TRAITS[algorithm].tile
    if tile is None:
        return o
    tiles = tile(Window(o, geom.W, geom.stride, geom.dilation))
    larger = tuple(min(-(-n // m) * m, end) for n, m, end in zip(o, tiles, geom.O, strict=True))
    return larger if fits(larger) else o


@lru_cache(maxsize=256)
def forward(
    geom: Geometry, algorithm: Algorithm, itemsize: int, limits: Limits, converted: bool = False
) -> Plan:
    """Cut a forward contraction: weights prepared once, then blocks of output positions.

    ``converted`` says that weights may be copied to another dtype before they are prepared.
    """
    cut = None
    while cut is None:
        try:
            cut = _forward(geom, algorithm, itemsize, limits, converted)
        except Refusal:
            if limits.block == 1:
                raise  # which says what the smallest blocks need
            limits = limits._replace(block=limits.block // 8 or 1)
    check_number(cut.products(geom), limits)
    return cut


def _forward(
    geom: Geometry, algorithm: Algorithm, itemsize: int, limits: Limits, converted: bool
) -> Plan:
    """Cut it into blocks of about the size that is asked for."""
    single, traits = (1,) * geom.rank, TRAITS[algorithm]
    whole = (geom.G, geom.k, geom.c, *geom.W)
    shortest = min(SHORTEST_SUM, math.prod(whole[2:]))

    def window(o: Ints, w: Ints) -> Window:
        return Window(o, w, geom.stride, geom.dilation)

    def numbers(held: Ints, shape: Ints, w: Ints) -> int:
        (_, k, c, *_), (g, n, *o) = held, shape
        cells, positions = g * n * slab(geom, tuple(o), w), g * n * math.prod(o)
        extra = algorithm.workspace(g, n, window(tuple(o), w), c, k)
        return cells * c * (not traits.reads) + extra + 2 * positions * k

    def block(held: Ints, shape: Ints, w: Ints) -> int:
        return itemsize * numbers(held, shape, w)

    widest = _widest(geom, algorithm, traits.long * limits.block // itemsize)

    def weights(held: Ints) -> int:
        g, k, c, *w = held
        copy = converted * math.prod(held)
        return itemsize * (algorithm.prepared(g, window(widest, tuple(w)), c, k) + copy)

    def fits(held: Ints) -> bool:
        shared = weights(held)
        smallest = (held[3:], single) if traits.cuts else (held[3:],)
        least = min(block(held, (1, 1, *single), w) for w in smallest)
        return 2 * shared <= limits.workspace and shared + least <= limits.workspace

    cuts = (1, 0, 2, *range(3, 3 + geom.rank)) if traits.cuts else (1, 0)
    smaller = halved(whole, cuts)
    held = _first((h for h in smaller if math.prod(h[2:]) >= shortest), fits)
    shared = weights(held)
    room = limits.workspace - shared
    wanted = min(max(traits.long * limits.block, 2 * shared), room)
    samples_first = (1, 0) if math.prod(geom.O) >= POSITIONS else (0, 1)
    work = _work(geom, numbers(held, (geom.G, geom.N, *geom.O), held[3:]))

    def shape_for(w: Ints) -> Ints:
        axes = (held[0], geom.N, *widest), (*samples_first, *range(2, 2 + geom.rank))

        def within(size: int) -> Ints:
            return _first(halved(*axes), lambda shape: block(held, shape, w) <= size)

        shape = within(wanted)
        blocks = count((geom.G, geom.N, *geom.O), shape)
        little = traits.double and blocks > limits.tasks and work < LITTLE * blocks
        return within(min(2 * wanted, room)) if little else shape

    w = held[3:]
    g, n, *o = shape_for(w)
    gaps = slab(geom, tuple(o), w) > math.prod(w) * slab(geom, tuple(o), single)
    if traits.cuts and (gaps or block(held, (g, n, *o), w) > room):
        w = single  # a dilated block would be mostly cells that no tap reads
        g, n, *o = shape_for(w)
    everything = (geom.N, *geom.O, held[0], held[1])
    rows = (-(-traits.positions // math.prod(some)) for some in (o, o[1:]))
    least = (*rows, *o[1:], 1, traits.channels)  # of fewer, blocks would prepare the same data
    first = 1 + geom.rank if traits.reads else 0  # by groups, as nothing else is read by another
    n, *o, g, k = _fed(everything, (n, *o, g, held[1]), work, least, limits.tasks, first=first)
    own = (g, k, *held[2:])
    outputs = _in_tiles(geom, algorithm, tuple(o), lambda o: block(own, (g, n, *o), w) <= room)
    size = block(own, (g, n, *outputs), w)
    if (held[2], *w) != whole[2:]:  # of sums in parts, each block prepares the weights of one
        shared, size = 0, size + weights((g, k, held[2], *w))
    _check(shared + size, limits)
    return Plan(held[0], held[1], g, k, n, outputs, held[2], w, shared, size)


class Boxes(NamedTuple):
    """Sizes of the blocks of an input gradient, products first, or of `bands`; bytes.

    Of groups, of input channels of a group, of samples and of cells; what all blocks share, and
    what one takes.
    """

    g: int
    c: int
    n: int
    i: Ints
    shared: int
    block: int

    @property
    def sizes(self) -> Ints:
        """What a block has of each axis of the result, (G, c, N, *I)."""
        return (self.g, self.c, self.n, *self.i)

    def blocks(self, geom: Geometry, size: Ints) -> int:
        """Count the blocks of a result of these spatial sizes."""
        return count((geom.G, geom.c, geom.N, *size), self.sizes)


@lru_cache(maxsize=256)
def grad_input(geom: Geometry, size: Ints, itemsize: int, limits: Limits) -> Boxes | None:
    """Cut a box of cells of an input gradient into blocks, products first.

    None: none would fit, or there were too many additions of taps.
    """
    taps = math.prod(geom.W)
    reach = tuple(d * (w - 1) for d, w in zip(geom.dilation, geom.W, strict=True))

    def numbers(shape: Ints, c: int = geom.c) -> int:
        g, n, *i = shape
        sizes = zip(i, reach, geom.stride, geom.O, strict=True)
        positions = math.prod(min((cells + more - 1) // s + 2, o) for cells, more, s, o in sizes)
        terms = c * taps * (n * positions + most_apart(n * positions))
        return g * (terms + n * (2 * geom.k * positions + 2 * c * math.prod(i)))

    shared = itemsize * geom.K * geom.c * taps
    wanted = min(limits.block, max(limits.workspace - shared, 0))
    order = tuple(range(1, 2 + geom.rank))
    shapes = halved((geom.G, geom.N, *size), (*order[:1], 0, *order[1:]))
    g, n, *i = _first(shapes, lambda shape: itemsize * numbers(shape) <= wanted)
    work = _operations(geom) + MOVED * numbers((geom.G, geom.N, *size))
    least = (-(-POSITIONS // math.prod(i)), max(reach[0] * 4, -(-POSITIONS // math.prod(i[1:]))))
    everything = (geom.N, *size, geom.G, geom.c)
    smallest = (*least, *i[1:], 1, CHANNELS)
    shape = (n, *i, g, geom.c)
    n, *i, g, c = _fed(everything, shape, work, smallest, limits.tasks, 2 * GRAIN)
    block = itemsize * numbers((g, n, *i), c)
    cut = Boxes(g, c, n, tuple(i), shared, block)
    additions = taps * cut.blocks(geom, size)
    return None if shared + block > limits.workspace or additions > MOST else cut


@lru_cache(maxsize=256)
def groups(geom: Geometry, own: Work, itemsize: int, limits: Limits) -> Boxes | None:
    """Cut a contraction by `bands` or `diagonals`; None: no group fits beside what is prepared."""
    sizes = geom.N * (math.prod(geom.I) + math.prod(geom.O)) + math.prod(geom.W)
    each = itemsize * (own.kept + 2 * sizes)  # it may have to convert what it reads and writes
    made = (itemsize + POINTER) * own.shared  # of a list first, by each worker or before all blocks
    if not limits.ample and own.shared > KEPT:
        return None
    (g,) = _first(halved((geom.G,), (0,)), lambda shape: each * shape[0] <= limits.block)
    operations = geom.G * (SMALL * own.products * own.operations + MOVED * (own.copied + sizes))
    (g,) = _fed((geom.G,), (g,), operations, (1,), limits.tasks, 2 * GRAIN)
    shared, block = itemsize * geom.G * own.prepared, each * g
    if shared:
        shared += made
    else:
        block += made
    if 2 * shared > limits.workspace or shared + block > limits.workspace:
        return None
    return Boxes(g, 1, geom.N, geom.O, shared, block)


class Banks(NamedTuple):
    """How Winograd's contractions are cut into banks of kernels.

    ``c`` channels of the data are transformed at a time, and ``k`` output channels are a bank.
    ``shared`` are the bytes held for all banks, ``block`` those of one, ``scratch`` the part of
    these that is in its thread's scratch.
    """

    c: int
    k: int
    shared: int
    block: int
    scratch: int

    def blocks(self, geom: Geometry) -> int:
        """Count the banks."""
        return count((geom.k,), (self.k,))


@lru_cache(maxsize=256)
def banks(
    geom: Geometry, itemsize: int, limits: Limits, converted: bool, weights: bool
) -> Banks | None:
    """Cut a contraction by `winograd` into banks of kernels; None: it is not for that."""
    sizes = BANK[-1:] if weights else BANK
    found = (_bank(k, geom, itemsize, limits, converted, weights) for k in sizes if 2 * k <= geom.k)
    return next((cut for cut in found if cut is not None), None)


def _bank(
    k: int, geom: Geometry, itemsize: int, limits: Limits, converted: bool, weights: bool
) -> Banks | None:
    """Cut it into banks of k kernels; None: they do not fit."""
    window = Window(geom.O, geom.W, geom.stride, geom.dilation)
    sizes = (geom.G, geom.N, window)
    cells, positions = (geom.G * geom.N * n for n in (slab(geom, *window[:2]), math.prod(geom.O)))
    c = max(CHANNELS, -(-geom.c // limits.tasks))
    held, steps = winograd.held(*sizes, geom.c), winograd.workspace(*sizes, min(c, geom.c), 0)
    weights_of_bank = geom.G * k * geom.c * math.prod(geom.W)
    if weights:
        held += winograd.held(*sizes, geom.k)
        steps = max(steps, winograd.weight_workspace(*sizes, 0, min(c, geom.k)))
        bank, results = winograd.weight_workspace(geom.G, 0, window, geom.c, k), weights_of_bank
    else:
        bank, results = winograd.bank_workspace(*sizes, geom.c, k), positions * k
        bank += converted * weights_of_bank
    scratch = itemsize * max(bank, steps + max(cells, positions) * c)
    shared, block = itemsize * held, scratch + 2 * itemsize * results  # which may be converted
    if shared > HELD or block > limits.block or shared + block > limits.workspace:
        return None
    return Banks(c, k, shared, block, scratch)


@lru_cache(maxsize=256)
def grad_weight(geom: Geometry, algorithm: Algorithm, itemsize: int, limits: Limits) -> Plan:
    """Cut a weight gradient: parts of the weights, each a sum over blocks of positions."""
    single, traits = (1,) * geom.rank, TRAITS[algorithm]

    def numbers(held: Ints, shape: Ints) -> int:
        (g, k, c, *w), (n, *o) = held, shape
        cells, positions = g * n * slab(geom, tuple(o), tuple(w)), g * n * math.prod(o)
        window = Window(tuple(o), tuple(w), geom.stride, geom.dilation)
        extra = algorithm.weight_workspace(g, n, window, c, k)
        return cells * c * (not traits.reads) + extra + positions * k + math.prod(held)

    def block(held: Ints, shape: Ints) -> int:
        return itemsize * numbers(held, shape)

    def fixed(held: Ints) -> int:
        """Bytes of a part of the weights, and of what is computed per part and not per position."""
        g, k, c, *w = held
        window = Window(single, tuple(w), geom.stride, geom.dilation)
        return itemsize * (math.prod(held) + algorithm.weight_workspace(g, 0, window, c, k))

    def fits(held: Ints) -> bool:
        shared = fixed(held)
        least = block((*held[:3], *(single if traits.cuts else held[3:])), (1, *single))
        return 6 * shared <= limits.workspace and shared + least <= limits.workspace

    def shape_for(held: Ints) -> Ints:
        shared, least = itemsize * math.prod(held), block(held, (1, *single))
        wanted = max(traits.long * limits.block, 3 * fixed(held), 2 * least)
        wanted = min(wanted, limits.workspace - shared)
        shapes = halved((geom.N, *geom.O), tuple(range(1 + geom.rank)))
        return _first(shapes, lambda shape: block(held, shape) <= wanted)

    whole = (geom.G, geom.k, geom.c, *geom.W)
    cuts = (0, 2, 1, *range(3, 3 + geom.rank)) if traits.cuts else (0, 2, 1)
    held = _first(halved(whole, cuts), fits)
    while held[0] > 1 and block(held, (1, *geom.O)) > traits.long * limits.block:
        held = (-(-held[0] // 2), *held[1:])  # groups are independent: cut them, not the sums
    n, *o = shape_for(held)
    gaps = slab(geom, tuple(o), held[3:]) > math.prod(held[3:]) * slab(geom, tuple(o), single)
    room = limits.workspace - itemsize * math.prod(held)
    if traits.cuts and (gaps or block(held, (n, *o)) > room):
        held = (*held[:3], *single)
        n, *o = shape_for(held)
    g, k, c, *w = held
    work = _work(geom, numbers(whole, (geom.N, *geom.O)))
    everything = (geom.N, *geom.O, *whole)
    positions = max(POSITIONS, traits.positions)
    least = (-(-positions // math.prod(o)), -(-positions // math.prod(o[1:])), *o[1:])
    fed = _fed(everything, (n, *o, *held), work, (*least, 1, k, CHANNELS, *w), limits.tasks)
    (n, *o), held = fed[: 1 + geom.rank], fed[1 + geom.rank :]
    g, k, c, *w = held
    shared = itemsize * math.prod(held)
    room = limits.workspace - shared
    outputs = _in_tiles(geom, algorithm, tuple(o), lambda o: block(held, (n, *o)) <= room)
    size = block(held, (n, *outputs))
    _check(shared + size, limits)
    cut = Plan(g, k, g, k, n, outputs, c, tuple(w), shared, size)
    check_number(cut.products(geom), limits)
    return cut
