"""The plain integers of `geometry` and `padding`, against counting one by one."""

from itertools import pairwise, product
from math import prod

import array_api_strict as strict
import numpy as np
import oracle
import pytest

import xconv
from xconv import namespace, padding, scatter
from xconv.errors import Refusal
from xconv.geometry import Geometry, geometry, halved, index, options, slab

MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")


def follows_the_size_rule(geom: Geometry) -> bool:
    """Whether its output sizes are those of its input sizes and padding."""
    opts = options(
        geom.rank, geom.stride, geom.padding, geom.dilation, padding_mode=geom.padding_mode
    )
    return oracle.output_size(geom.I, geom.W, *opts[:3]) == geom.O


AXES = [  # size, kernel, stride, dilation, padding: all that have an output
    axis
    for axis in product(
        (1, 4, 7), (1, 2, 4), (1, 2, 3), (1, 2, 4), [(0, 0), (4, 1), (-1, 3), (2, -2)]
    )
    if axis[0] + sum(axis[4]) > axis[3] * (axis[1] - 1)
]


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_phases_are_all_meetings_of_cells_and_taps(axis):
    size, kernel, s, d, pair = axis
    geom = Geometry(1, 1, 1, 1, (size,), (kernel,), (1,), (s,), (d,), (pair,), "zeros")
    for start, stop in ((0, size), (-2, size + 3), (1, 2)):
        found = set()
        phases = geom.phases(0, start, stop)
        for phase in phases:
            assert phase.cells > 0
            back = geom.backwards((phase,))
            assert follows_the_size_rule(back)
            for i, t in product(range(*back.O), range(*back.W)):
                cell = start + phase.offset + s * i
                tap = phase.first + phase.step * (phase.taps - 1 - t)  # mirrored
                found.add((cell, tap, i + back.dilation[0] * t - back.padding[0][0]))
        cells = range(start, stop)
        meetings = ((q, t, q + pair[0] - d * t) for q, t in product(cells, range(kernel)))
        assert found == {(q, t, at // s) for q, t, at in meetings if at % s == 0}


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_cells_that_outputs_read(axis):
    size, kernel, s, d, pair = axis
    geom = geometry(1, 1, 1, (size,), (kernel,), options(1, s, (pair,), d))
    reads = {s * o + d * t - pair[0] for o, t in product(range(*geom.O), range(kernel))}
    assert geom.read_range(0) == (min(reads), max(reads) + 1)
    for q in range(min(reads) - 4, max(reads) + 2):
        assert geom.next_read(0, q) == min((cell for cell in reads if cell >= q), default=None)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_one_tap_per_axis_is_a_convolution_of_every_stride_th_cell(axis):
    size, _, s, _, pair = axis
    geom = geometry(1, 1, 1, (size,), (1,), options(1, s, (pair,), 1))
    less, index = geom.skipping()
    cells = slice(None) if index is None else index[-1]
    assert less.stride == (1,)
    assert (index is None) == (geom.stride == (1,))
    assert follows_the_size_rule(less)
    read = [q for q in range(-pair[0], size + pair[1], s) if 0 <= q < size]
    low = less.padding[0][0]
    assert list(range(size))[cells][max(-low, 0) : less.O[0] - low] == read


def test_what_moves_nothing_is_1():
    geom = geometry(1, 1, 1, (3, 9, 9), (3, 1, 2), options(3, (7, 4, 5), 0, (1, 6, 3)))
    assert geom.O == (1, 3, 2)
    assert geom.stride == (1, 4, 5)
    assert geom.dilation == (1, 1, 3)


def test_a_part_of_a_convolution_is_one():
    geom = geometry(5, 12, 24, (9, 8), (3, 2), options(2, (2, 1), (1, 2), 1, 4))
    part = geom.part(3, 2, 2, (1, 3), (4, 5))
    assert (part.G, part.N, part.c, part.k, part.C, part.K) == (3, 2, 3, 2, 9, 6)
    assert part.O == (3, 2)
    zero = (0, 0)
    whole = geom.reads((1, 3), (4, 5), zero, geom.W)
    assert part.reads(zero, part.O, zero, part.W) == whole == ((1, 1), (8, 4))


def test_a_slab_has_every_cell_between_the_first_and_the_last_that_is_read():
    geom = geometry(1, 1, 1, (30, 40, 9), (3, 2, 1), options(3, (2, 3, 1), 0, (4, 1, 1)))
    for o, w in (((3, 5, 2), (3, 2, 1)), ((1, 1, 1), (3, 1, 1)), ((4, 1, 1), (1, 2, 1))):
        start, stop = geom.reads((0,) * 3, o, (0,) * 3, w)
        assert slab(geom, o, w) == prod(np.subtract(stop, start))


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize(("start", "stop"), [((0, 0), (7, 9)), ((2, 3), (4, 5)), ((6, 0), (7, 1))])
def test_products_first_make_the_input_gradient(stride, start, stop):
    G, N, c, k, sizes, W = 2, 4, 3, 5, (7, 9), (3, 2)
    geom = geometry(N, G * c, G * k, sizes, W, options(2, stride, 1, (2, 1), G))
    rng = np.random.default_rng(0)
    w, g = rng.integers(-9, 9, (G, k, c, *W)), rng.integers(-9, 9, (G, k, N, *geom.O))
    first, last = scatter.outputs(geom, start, stop)
    read = g[(..., *map(slice, first, last))]
    shape = (G, c, N, *np.subtract(stop, start))
    additions = scatter.additions(geom, first, last, start, stop)
    assert all(read[one.here].size for one in additions)
    for _ in range(2):  # the second time in the memory of the first
        namespace.begin_block(np, True)
        found = scatter.grad_input(np, read, scatter.prepare(np, w), shape, additions)
    flat = np.moveaxis(g, 2, 0).reshape(N, G * k, *geom.O), w.reshape(G * k, c, *W)
    right = oracle.grad_input(*flat, sizes, stride=stride, padding=1, dilation=(2, 1), groups=G)
    right = right.reshape(N, G, c, *sizes)[(..., *map(slice, start, stop))]
    np.testing.assert_array_equal(np.moveaxis(found, 2, 0), right)


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, 0])
def test_ints_of_64_bits_are_taken(value):
    for kind in (int, np.int64):
        number = index(kind(value), "a number")
        assert number == value
        assert type(number) is int


def test_halved_goes_down_to_ones_in_order():
    shapes = [(5, 1, 3), (5, 1, 2), (5, 1, 1), (3, 1, 1), (2, 1, 1), (1, 1, 1)]
    assert list(halved((5, 1, 3), (1, 2, 0))) == shapes


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_outputs_that_read_a_box_and_what_they_add_to_it(axis):
    size, kernel, s, d, pair = axis
    geom = geometry(1, 1, 1, (size,), (kernel,), options(1, s, (pair,), d))
    (O,), (s,), (d,) = geom.O, geom.stride, geom.dilation
    for start, stop in ((0, size), (1, 3), (-3, 0), (size - 1, size + 2)):
        near = [o for o in range(O) if start - d * (kernel - 1) <= s * o - pair[0] < stop]
        (first,), (last,) = scatter.outputs(geom, (start,), (stop,))
        assert list(range(first, last)) == near
        assert 0 <= first <= last <= O
        found = []
        for tap, there, here in scatter.additions(geom, (first,), (last,), (start,), (stop,)):
            cells = range(stop - start)[there[-1]]
            outputs = range(last - first)[here[-1]]
            found += [(tap, c, o) for c, o in zip(cells, outputs, strict=True)]
            assert outputs
        meetings = product(range(kernel), range(stop - start), range(last - first))
        right = [
            (t, c, o) for t, c, o in meetings if start + c == s * (first + o) + d * t - pair[0]
        ]
        assert sorted(found) == right


# -- padding

SIDES = [(0, 0), (1, 0), (2, 1), (0, 2), (3, 3), (-1, 2), (3, -4), (-2, -1)]
LINES = [  # size, mode, low, high
    (size, mode, *pair)
    for size, mode, pair in product((0, 1, 4, 5), MODES, SIDES)
    if max(pair) <= {"reflect": size - 1, "replicate": 9 * size, "zeros": 9}.get(mode, size)
    and size + sum(pair) > 0
]


def held(run) -> list[tuple[int, int]]:
    """Each coordinate of a run and the cell that it holds; of one of zeros none."""
    if run.source is None:
        return []
    return [(q, run.source + run.step * (q - run.start)) for q in range(run.start, run.stop)]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_pieces_are_the_padded_line(line):
    size, mode, low, high = line
    whole = oracle.padded(size, low, high, mode)
    high_side = ((at, size + high) for at in (1, size, size + 1))
    for start, stop in ((-low, size + high), (0, 1), (-low, 0), *high_side):
        if -low <= start < stop <= size + high:
            right = [(q, whole[q + low]) for q in range(start, stop)]
            runs = padding.pieces(size, mode, start, stop)
            assert [q for run in runs for q in range(run.start, run.stop)] == [*range(start, stop)]
            assert all(run.start < run.stop for run in runs)
            assert [place for run in runs for place in held(run)] == [
                (q, cell) for q, cell in right if cell is not None
            ]
            for run in (run for run in runs if run.source is not None):
                cells = np.arange(size)[run.cells()]
                assert list(np.broadcast_to(cells, len(held(run)))) == [c for _, c in held(run)]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_strips_and_copies_are_all_that_hold_a_cell(line):
    size, mode, low, high = line
    before, after = max(low, 0), max(high, 0)
    whole = oracle.padded(size, before, after, mode)
    right = sorted((q - before, cell) for q, cell in enumerate(whole) if cell is not None)
    strips = padding.strips(size, mode, low, high)
    reading = Geometry(  # all of it
        *(1, 1, 1, 1, (size,), (1,), (len(whole),), (1,), (1,), ((before, after),), mode)
    )
    assert [cell for strip in strips for cell in range(strip.start, strip.stop)] == [*range(size)]
    for strip in strips:
        inside = [place for place in right if strip.start <= place[1] < strip.stop]
        assert sorted(place for run in strip.runs for place in held(run)) == inside
        assert len(strip.runs) <= 3
        for widest in (1, 2, 5):
            some = padding.split(reading, 0, strip, widest)
            assert (
                max(max(s.stop - s.start, *(r.stop - r.start for r in s.runs)) for s in some)
                <= widest
            )
            assert sorted(place for s in some for run in s.runs for place in held(run)) == inside
            for one in some:
                assert all(
                    one.start <= cell < one.stop for run in one.runs for _, cell in held(run)
                )
                assert all(
                    run.step == 0 or len(held(run)) == one.stop - one.start for run in one.runs
                )
    for a, b in ((0, size), (1, 3), (size - 1, size), (2, 2)):
        if 0 <= a <= b <= size:
            runs = padding.copies(size, mode, (low, high), a, b)
            assert all(map(held, runs))
            assert sorted(place for run in runs for place in held(run)) == [
                place for place in right if a <= place[1] < b
            ]


@pytest.mark.parametrize("mode", MODES)
def test_a_tile_is_copied_where_padding_copies_any_of_its_cells(mode):
    for tile in padding.tiles((6, 5), mode, ((2, 0), (1, 2))):
        here = [*product(*map(range, tile.start, tile.stop))]
        lines = oracle.padded(6, 2, 0, mode), oracle.padded(5, 1, 2, mode)
        assert tile.copied == any(
            line.count(i) > 1 for at in here for line, i in zip(lines, at, strict=True)
        )


@pytest.mark.parametrize("mode", MODES)
def test_reading_copies_only_where_padding_has_a_part(mode):
    geom = geometry(2, 3, 3, (6, 5), (1, 1), options(2, 1, ((2, 3), (1, 2)), 1, 1, mode))
    x = np.arange(2 * 3 * 6 * 5.0).reshape(1, 3, 2, 6, 5)
    box = (slice(0, 1), slice(1, 3), slice(1, 2))
    lines = oracle.padded(6, 2, 3, mode), oracle.padded(5, 1, 2, mode)
    for start, stop in (((0, 0), (6, 5)), ((2, 1), (4, 3)), ((-2, -1), (9, 7)), ((-2, 1), (0, 4))):
        how = padding.reading(geom, box, start, stop)
        cells = [
            line[a + low : b + low]
            for line, a, b, low in zip(lines, start, stop, (2, 1), strict=True)
        ]
        assert how.zeros == any(None in line for line in cells)
        steps = [b - a for line in cells if None not in line for a, b in pairwise(line)]
        straight = not how.zeros and set(steps) <= {1}
        assert (how.inside is not None) == straight
        assert not (straight and how.copies)
        want = np.zeros((1, 2, 1, *map(len, cells)))
        for at in np.ndindex(want.shape[3:]):
            cell = tuple(line[i] for line, i in zip(cells, at, strict=True))
            if None not in cell:
                want[(..., *at)] = x[(*box, *cell)]
        for dtype in ("float64", "float32"):
            block = padding.read(np, x, how, dtype)
            np.testing.assert_array_equal(block, want.astype(dtype), strict=True)
            assert np.shares_memory(block, x) == (straight and dtype == "float64")


@pytest.mark.parametrize("xp", [np, strict], ids=["numpy", "strict"])
@pytest.mark.parametrize("line", LINES, ids=str)
def test_padding_as_an_expression_and_its_adjoint(xp, line):
    size, mode, low, high = line
    pairs = ((low, high), (0, 0))
    geom = geometry(1, 2, 2, (size, 3), (1, 1), options(2, 1, pairs, 1, 1, mode))
    x = np.arange(1, 1 + 2 * size * 3, dtype=np.int16).reshape(1, 2, 1, size, 3)
    whole = oracle.padded(size, max(low, 0), max(high, 0), mode)
    crop = slice(max(-low, 0), len(whole) - max(-high, 0))
    want = np.zeros((1, 2, 1, len(whole), 3), np.int16)
    for q, cell in enumerate(whole):
        if cell is not None:
            want[:, :, :, q] = x[:, :, :, cell]
    found = padding.pad(xp, xp.asarray(x), geom, (-low, 0), (size + high, 3))
    np.testing.assert_array_equal(np.asarray(found), want[:, :, :, crop], strict=True)

    if mode == "zeros":  # what padding adds has no gradient
        want, whole = x, range(size)
    adjoint = np.zeros_like(x)
    for q, cell in enumerate(whole):
        adjoint[:, :, :, cell] += want[:, :, :, q]
    back = padding.unpad(xp, xp.asarray(want), geom)
    np.testing.assert_array_equal(np.asarray(back), adjoint, strict=True)
    start = 0 if mode == "zeros" else -max(low, 0)
    assert padding.extent(geom, 0) == (start, start + len(whole))


def test_torch_differentiates_through_padding():
    import array_api_compat.torch as xp

    geom = geometry(1, 1, 1, (3,), (1,), options(1, 1, ((4, 0),), 1))
    x = xp.ones((1, 1, 1, 3), requires_grad=True)
    zeros = padding.pad(xp, x, geom, (-4,), (-1,))
    zeros.sum().backward()
    assert zeros.shape == (1, 1, 1, 3)
    assert not x.grad.any()
    geom = geometry(1, 1, 1, (3,), (1,), options(1, 1, ((2, 0),), 1, 1, "reflect"))
    padding.pad(xp, x, geom, (-2,), (3,)).sum().backward()
    assert x.grad.tolist() == [[[[1, 2, 2]]]]


def test_sizes_beyond_any_memory_are_refused():
    """By the size of the result, not by that of what it is made from."""
    wide = np.broadcast_to(np.int8(3), (1, 1, 1, 2**62))
    geom = geometry(1, 1, 1, (2**62,), (1,), options(1, 1, 0, 1))
    assert padding.pad(np, wide, geom, (2,), (6,)).tolist() == [[[[3] * 4]]]
    for x, sizes in ((wide[:, :, :, :1], (-(2**62), 2**62)), (wide[:, :, :, :3], (-(2**63), 5))):
        with pytest.raises(Refusal, match=r"arrays of less than 2\*\*63 bytes"):
            padding.pad(np, x, geom, *((n,) for n in sizes))
    for before, after in ((2**61, 2**61), (2**62, 0)):
        with pytest.raises(Refusal, match=r"arrays of less than 2\*\*63 bytes"):
            padding.embedded(np, np.ones((2, 3), np.int8), 1, before, after)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 1), (1, 3)])
def test_embedded_in_zeros(before, after):
    x = np.arange(6, dtype=np.int8).reshape(2, 3)
    found = padding.embedded(np, x, 1, before, after)
    right = np.pad(x, ((0, 0), (before, after)))
    np.testing.assert_array_equal(found, right, strict=True)
    assert (found is x) == (before == after == 0)


@pytest.mark.parametrize("pair", [(0, 0), (2, 0), (-1, 0)], ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_cells_that_a_tap_reads(stride, dilation, pair):
    geom = Geometry(1, 1, 1, 1, (9,), (3,), (9,), (stride,), (dilation,), (pair,), "zeros")
    for tap, first, outputs, start, cells in product(
        range(3), (0, 2), (0, 1, 4), (-3, 0, 2, 7), (0, 1, 6)
    ):
        there, for_which = geom.meeting(0, tap, first, outputs, start, cells)
        at = [stride * (first + o) + dilation * tap - pair[0] - start for o in range(outputs)]
        right = [(cell, o) for o, cell in enumerate(at) if 0 <= cell < cells]
        found = range(cells)[there], range(outputs)[for_which]
        assert [*zip(*found, strict=True)] == right


def test_the_convolution_with_g_and_w_exchanged():
    axes = ((9, 8), (3, 2), (4, 3), (2, 3), (1, 2), ((0, 0), (1, 1)))
    geom = Geometry(5, 6, 9, 3, *axes, "zeros")
    other = geom.exchanged()
    assert (other.G, other.N, other.c, other.k) == (geom.G, geom.c, geom.N, geom.k)
    assert (other.W, other.O, other.I) == (geom.O, geom.W, geom.I)
    assert (other.stride, other.dilation) == (geom.dilation, geom.stride)
    assert other.exchanged() == geom


def test_tiles_that_are_copied_come_first():
    """Of cells 0 to 4, padding by one on each side copies 1 and 3."""
    tiles = padding.tiles((5,), "reflect", ((1, 1),))
    assert [(tile.start, tile.copied) for tile in tiles] == [
        ((1,), True),
        ((3,), True),
        ((0,), False),
        ((2,), False),
        ((4,), False),
    ]


def test_fold_slices_within_axes():
    """Beyond their ends the standard leaves it open what a slice is."""
    cells = xconv.fold(strict.asarray(np.ones((1, 3, 9))), (11,), (3,))
    np.testing.assert_array_equal(np.asarray(cells)[0, 0], [1, 2, *[3] * 7, 2, 1])
    only_zeros = xconv.fold(strict.asarray(np.ones((1, 2, 2))), (3,), (2,), padding=((4, -4),))
    np.testing.assert_array_equal(np.asarray(only_zeros), [[[0, 0, 0]]])


@pytest.mark.parametrize(
    ("widest", "number"),
    [
        (1, 1 + 23),  # cells of the 40 that are read: every second one, from the first to the last
        (2, 1 + 20),
        (7, 1 + 6),
        (99, 1 + 1),
    ],
)
def test_copies_of_padding_are_counted_before_they_are_listed(widest, number):
    opts = options(1, 4, ((40, 0),), 2, 1, "replicate")
    geom = geometry(1, 1, 1, (5,), (3,), opts)
    first = padding.strips(5, "replicate", 40, 0)[0]
    assert padding.number(geom, 0, first, widest) == number
    found = padding.split(geom, 0, first, widest)
    assert sum(len(strip.runs) for strip in found) <= number
    few = geometry(1, 1, 1, (5,), (2,), options(1, 30, ((40, 0),), 7, 1, "replicate"))
    assert padding.number(few, 0, first, 1) == 1 + 4  # two windows of two cells
    rest = padding.strips(5, "replicate", 40, 0)[1]
    assert padding.number(geom, 0, rest, 3) == 2 == len(padding.split(geom, 0, rest, 3))
    assert padding.number(geom, 0, rest, 4) == 1 == len(padding.split(geom, 0, rest, 4))
    wide = geometry(1, 1, 1, (5,), (4,), options(1, 6, ((60, 0),), 4, 1, "replicate"))
    (far, *_) = padding.strips(5, "replicate", 60, 0)
    assert padding.number(wide, 0, far, 1) == 1 + 31  # every second of 6 * 8 + 4 * 3 + 1
