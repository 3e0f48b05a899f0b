"""What Hypothesis draws: any convolution that is legal, and what it is computed in."""

from dataclasses import replace

import cases
import oracle
from backends import FLOATS, INTEGERS
from cases import Case
from checks import METHODS
from hypothesis import strategies as st

NAMES = ("valid", "same", "same_lower", "full", "causal")
MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")
# by rank the most taps, dilation, cells at first and cells of padding of an axis, so that the
# oracle's loops stay short
LARGEST = {1: (4, 3, 5, 4), 2: (4, 3, 5, 4), 3: (3, 2, 4, 2), 4: (2, 2, 3, 1)}

dtypes = st.sampled_from(FLOATS + INTEGERS)
sums = st.sampled_from(FLOATS[1:] + INTEGERS)  # in float16 a sum of small integers is not exact
methods = st.sampled_from([method for method in METHODS if method.exact])


def per_axis(case: Case) -> tuple[oracle.Axis, ...]:
    """The case's options, axis by axis."""
    return oracle.axes(
        case.x[2:], case.w[2:], case.stride, case.padding, case.dilation, case.padding_mode
    )


def fits(case: Case) -> bool:
    """Whether there is a window, and whether the padding mode reaches as far as it is asked to."""
    try:
        return all(axis.windows() for axis in per_axis(case))
    except AssertionError:
        return False


def grown(case: Case) -> Case:
    """The case, with an input that is large enough for it."""
    while not fits(case):
        case = replace(case, x=(*case.x[:2], *(size + 1 for size in case.x[2:])))
    return case


@st.composite
def layouts(draw, rank: int):
    axes = cases.SPATIAL[:rank]
    triple = st.tuples(
        st.permutations(f"NC{axes}"), st.permutations(f"OI{axes}"), st.permutations(f"NC{axes}")
    )
    named = st.sampled_from(["channels_first", "channels_last"])
    return draw(named | triple.map(lambda three: tuple("".join(one) for one in three)))


@st.composite
def drawn_cases(draw, transposed=False):
    """Any case that is legal, of one to four axes."""
    rank = draw(st.integers(1, 4))
    taps, dilated, cells, padded = LARGEST[rank]

    def several(numbers):
        return draw(st.tuples(*[numbers] * rank))

    kernel = several(st.integers(1, taps))
    stride, dilation = (
        draw(st.integers(1, high)) if draw(st.booleans()) else several(st.integers(1, high))
        for high in (4, dilated)
    )
    sides = st.integers(-2, padded)
    padding = draw(
        st.just(0)
        | st.sampled_from(NAMES)
        | sides
        | st.tuples(*[sides] * rank)
        | st.tuples(*[st.tuples(sides, sides)] * rank)
    )
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    batched = draw(st.booleans())
    amounts = st.sampled_from((1, 2, 3) * 4 + (0,))
    n, c, k = draw(st.tuples(amounts if batched else st.just(1), amounts, amounts))
    case = Case(
        f"drawn {draw(st.integers(0, 99))}",  # which seeds its numbers
        (n, c * groups, *several(st.integers(0, cells))),
        (k * groups, c, *kernel),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=draw(st.sampled_from(MODES)),
        layout=draw(layouts(rank)),
        batched=batched,
        bias=draw(st.booleans()),
    )
    case = grown(case)
    return to_transposed(draw, case) if transposed else case


def to_transposed(draw, case: Case) -> Case:
    """The transposed call that gives this case's input size back, in any of the ways to ask."""
    small = case.y
    shape = {key: getattr(case, key) for key in ("stride", "padding", "dilation")}
    least = oracle.transposed_size(small[2:], case.w[2:], **shape)
    extra = tuple(i - j for i, j in zip(case.x[2:], least, strict=True))
    asked = {"output_size": case.x[2:]}
    if case.padding not in ("same", "same_lower") or not any(extra):
        ways = [asked, {"output_padding": extra}, {"output_padding": extra, **asked}]
        if len(set(extra)) == 1:
            ways.append({"output_padding": extra[0]})
        asked = draw(st.sampled_from(ways))
    return replace(case, x=small, transposed=True, **asked)


def convolution(case: Case) -> Case:
    """The case, or the convolution that it transposes."""
    if not case.transposed:
        return case
    return replace(case, x=case.y, transposed=False, output_padding=0, output_size=None)


any_case = drawn_cases() | drawn_cases(transposed=True)
