"""The plain integers of `geometry` and `padding`, against counting one by one."""

from itertools import product
from math import prod

import numpy as np
import oracle
import pytest

from xconv.geometry import Geometry, geometry, halved, options, slab

MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")


def one_axis(size, kernel, **more) -> Geometry:
    return geometry(1, 1, 1, (size,), (kernel,), options(1, **more))


def follows_the_size_rule(geom: Geometry) -> bool:
    """Whether its sizes and padding are those of a convolution that a user could ask for."""
    axes = zip(geom.I, geom.W, geom.stride, geom.padding, geom.dilation, strict=True)
    return (
        tuple(
            oracle.output_size(
                *zip(*[(axis[0], axis[1])], strict=True), axis[2], (axis[3],), axis[4]
            )[0]
            for axis in axes
        )
        == geom.O
    )


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
def test_one_tap_per_axis_is_a_convolution_of_every_stride_th_cell(axis):
    size, _, s, _, pair = axis
    geom = one_axis(size, 1, stride=s, padding=(pair,))
    less, (cells,) = geom.skipping()
    assert less.stride == (1,)
    assert follows_the_size_rule(less)
    read = [q for q in range(-pair[0], size + pair[1], s) if 0 <= q < size]
    low = less.padding[0][0]
    assert list(range(size))[cells][max(-low, 0) : less.O[0] - low] == read


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


def test_halved_goes_down_to_ones_in_order():
    shapes = [(5, 1, 3), (5, 1, 2), (5, 1, 1), (3, 1, 1), (2, 1, 1), (1, 1, 1)]
    assert list(halved((5, 1, 3), (1, 2, 0))) == shapes
