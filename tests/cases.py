"""The case table: small named convolutions that together cover every option and their interplay.

A case is stored in canonical form, channels first and batched, next to the layout in which xconv is
to see it; `to_layout` and `from_layout` translate. `numbers` fills arrays with small integers, on
which every sum is exact.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import oracle

SPATIAL = "DHWUVABEFGJKLMPQRSTXYZ"  # all letters but N, C, I and O


@dataclass(frozen=True)
class Case:
    name: str
    x: tuple[int, ...]  # (N, C, *I)
    w: tuple[int, ...]  # (K, C/G, *W); transposed (C, K/G, *W)
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    padding_mode: str = "zeros"
    layout: Any = "channels_first"
    output_padding: Any = 0
    output_size: tuple[int, ...] | None = None
    transposed: bool = False
    batched: bool = True  # False: x is its only sample, without N
    bias: bool = True

    @property
    def rank(self) -> int:
        return len(self.w) - 2

    @property
    def options(self) -> dict[str, Any]:
        """What differs from xconv's defaults."""
        describing = ("name", "x", "w", "transposed", "batched", "bias")
        options = {f.name: f for f in fields(self) if f.name not in describing}
        return {n: getattr(self, n) for n, f in options.items() if getattr(self, n) != f.default}

    @property
    def oracle_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name != "layout"}

    @property
    def y(self) -> tuple[int, ...]:
        """(N, K, *O)."""
        n, w = self.x[0], self.w
        shape = {key: getattr(self, key) for key in ("stride", "padding", "dilation")}
        if not self.transposed:
            return (n, w[0], *oracle.output_size(self.x[2:], w[2:], **shape))
        size = self.output_size or oracle.transposed_size(
            self.x[2:], w[2:], output_padding=self.output_padding, **shape
        )
        return (n, w[1] * self.groups, *size)


# -- layouts


def specs(case: Case) -> tuple[str, str, str]:
    """The layout as three strings: of x, of w and of the result."""
    axes = SPATIAL[: case.rank]
    match case.layout:
        case "channels_first":
            return f"NC{axes}", f"OI{axes}", f"NC{axes}"
        case "channels_last":
            return f"N{axes}C", f"{axes}IO", f"N{axes}C"
        case x, w, y:
            return x, w, y
    raise AssertionError(case.layout)


def order(case: Case, role: str) -> tuple[int, ...]:
    """Where each axis of the layout comes from; `role` is x, w, y, b or the per-sample "nw"."""
    x, w, y = specs(case)
    if role == "b":
        return (0,)
    if "w" in role:
        axes = "".join(letter for letter in w if letter not in "OI")
        lead = "N" if role == "nw" and case.batched else ""
        return tuple(f"{lead}OI{axes}".index(letter) for letter in lead + w)
    axes = "".join(letter for letter in w if letter not in "OI")  # w orders the spatial axes
    canonical, spec = f"NC{axes}", {"x": x, "y": y}[role]
    if not case.batched:
        canonical, spec = canonical.replace("N", ""), spec.replace("N", "")
    return tuple(canonical.index(letter) for letter in spec)


def to_layout(case: Case, role: str, array: np.ndarray) -> np.ndarray:
    """From canonical to what xconv takes or returns."""
    if not case.batched and role in ("x", "y", "nw"):
        array = array[0]
    return np.ascontiguousarray(array.transpose(order(case, role)))


def from_layout(case: Case, role: str, array: np.ndarray) -> np.ndarray:
    """Back to canonical."""
    array = array.transpose(np.argsort(order(case, role)))
    return array[None] if not case.batched and role in ("x", "y", "nw") else array


# -- numbers


@lru_cache(maxsize=4096)
def wide_numbers(name: str, role: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """-4..4 for "f"; both parts so for "c"; anything an int64 holds for "i"."""
    rng = np.random.default_rng(crc32(f"{name} {role} {kind}".encode()))
    if kind == "i":
        numbers = rng.integers(-(2**63), 2**63 - 1, shape, np.int64, endpoint=True)
    elif kind == "c":
        numbers = rng.integers(-4, 5, shape) + 1j * rng.integers(-4, 5, shape)
    else:
        numbers = rng.integers(-4, 5, shape).astype(np.float64)
    numbers.flags.writeable = False
    return numbers


def kind_of(dtype: str) -> str:
    """The kind of numbers that a dtype is tried with: f, c or i."""
    return {"b": "f", "f": "f", "c": "c", "i": "i", "u": "i"}[dtype[0]]


def shape_of(case: Case, role: str) -> tuple[int, ...]:
    shapes = {"x": case.x, "w": case.w, "y": case.y, "b": (case.y[1],)}
    return shapes[role.removeprefix("d").removeprefix("d")]


def numbers(case: Case, role: str, kind: str) -> np.ndarray:
    """The case's x, w, b, dy (shaped as y), ddx, ddw or ddb: canonical, wide, the same every time.

    Cast to a narrower integer they wrap, and so does what the oracle makes of them.
    """
    return wide_numbers(case.name, role, shape_of(case, role), kind)


# -- the table


def conv(name: str, x, w, **options) -> Case:
    return Case(name, x, w, **options)


def transpose(name: str, x, w, **options) -> Case:
    return Case("transpose-" + name, x, w, transposed=True, **options)


KERAS = ("NHWC", "HWIO", "NHWC")

# fmt: off
TABLE = (
    # ranks
    conv("1d", (2, 3, 11), (4, 3, 3)),
    conv("2d", (2, 3, 7, 6), (4, 3, 3, 2)),
    conv("3d", (2, 2, 4, 5, 3), (3, 2, 2, 3, 2)),
    conv("4d", (2, 2, 3, 4, 3, 2), (3, 2, 2, 3, 2, 1)),
    conv("2d-no-bias", (3, 2, 5, 8), (5, 2, 2, 3), bias=False),
    conv("4d-everything", (1, 4, 3, 4, 3, 5), (2, 2, 2, 1, 2, 3), stride=(1, 2, 1, 2),
         padding=((1, 0), (0, 1), (1, 1), (-1, 1)), dilation=(1, 1, 2, 1), groups=2),
    # degenerate sizes
    conv("1x1", (2, 3, 4, 5), (4, 3, 1, 1)),
    conv("1x1-strided", (2, 3, 5, 6), (4, 3, 1, 1), stride=2),
    conv("1x1-strided-reflect", (2, 2, 7), (3, 2, 1), stride=2, padding=((1, 2),),
         padding_mode="reflect"),
    conv("1x1-padded", (2, 3, 4, 3), (4, 3, 1, 1), padding=(1, 2)),
    conv("single-number", (1, 1, 1), (1, 1, 1)),
    conv("kernel-is-input", (3, 2, 4, 5), (6, 2, 4, 5)),
    conv("kernel-is-padded-input", (2, 2, 3, 2), (3, 2, 5, 4), padding=1),
    conv("kernel-larger-than-input", (2, 2, 2, 3), (3, 2, 4, 5), padding=2),
    conv("one-channel-large-kernel", (1, 1, 12, 11), (1, 1, 7, 6), padding=(3, 2)),
    conv("long-kernel", (1, 2, 40), (3, 2, 17), padding=8),
    conv("many-channels", (1, 17, 4, 3), (19, 17, 3, 3), padding=1),
    conv("many-samples", (13, 2, 5), (3, 2, 2)),
    conv("row-kernel", (2, 2, 4, 9), (3, 2, 1, 5)),
    conv("column-kernel", (2, 2, 9, 4), (3, 2, 5, 1)),
    # stride and dilation
    conv("stride", (2, 3, 9, 8), (4, 3, 3, 2), stride=2),
    conv("stride-per-axis", (2, 3, 9, 10), (4, 3, 3, 2), stride=(2, 3)),
    conv("stride-tail", (2, 2, 12, 13), (3, 2, 3, 4), stride=(4, 5)),
    conv("stride-above-kernel", (2, 2, 11), (3, 2, 2), stride=4),
    conv("stride-above-input", (2, 2, 4, 5), (3, 2, 2, 3), stride=(7, 2**40)),
    conv("stride-3d", (1, 2, 5, 7, 6), (3, 2, 3, 2, 1), stride=(2, 3, 2), padding=(1, 0, 1)),
    conv("dilation", (2, 2, 9, 8), (3, 2, 3, 2), dilation=2),
    conv("dilation-per-axis", (2, 2, 9, 11), (3, 2, 2, 3), dilation=(3, 4)),
    conv("dilation-huge-on-1", (2, 2, 5, 6), (3, 2, 1, 3), dilation=(2**40, 2)),
    conv("dilation-into-padding", (2, 2, 5), (3, 2, 3), dilation=6, padding=6),
    conv("dilation-and-stride", (2, 2, 13, 12), (3, 2, 3, 3), dilation=(2, 3), stride=(3, 2),
         padding=2),
    conv("dilation-multiple-of-stride", (2, 2, 14), (3, 2, 3), dilation=4, stride=2, padding=3),
    conv("dilation-shares-factor", (1, 2, 23), (2, 2, 3), dilation=6, stride=4, padding=5),
    # groups
    conv("groups", (2, 4, 6, 5), (6, 2, 3, 2), groups=2),
    conv("groups-3-strided", (2, 6, 7), (9, 2, 3), groups=3, stride=2, padding=1),
    conv("depthwise", (2, 5, 6, 7), (5, 1, 3, 3), groups=5, padding=1),
    conv("depthwise-multiplier", (2, 3, 6, 5), (6, 1, 2, 3), groups=3),
    conv("depthwise-strided-dilated", (2, 4, 11, 9), (4, 1, 3, 2), groups=4, stride=2, dilation=2),
    conv("groups-to-one-output-each", (2, 6, 5, 4), (2, 3, 2, 2), groups=2),
    conv("groups-1x1", (2, 6, 3, 4), (4, 3, 1, 1), groups=2),
    conv("groups-3d-circular", (1, 4, 3, 4, 3), (2, 2, 2, 3, 2), groups=2, padding=1,
         padding_mode="circular"),
    # padding, every spelling
    conv("padding-int", (2, 2, 5, 6), (3, 2, 3, 3), padding=1),
    conv("padding-ints", (2, 2, 5, 4), (3, 2, 3, 2), padding=(0, 2)),
    conv("padding-pair-1d", (2, 2, 6), (3, 2, 3), padding=((3, 1),)),
    conv("padding-pairs", (2, 2, 5, 4), (3, 2, 3, 2), padding=((2, 0), (1, 3))),
    conv("padding-pairs-strided", (2, 2, 7, 6), (3, 2, 3, 3), padding=((0, 2), (3, 1)),
         stride=(3, 2)),
    conv("padding-above-kernel", (1, 2, 3, 2), (2, 2, 2, 2), padding=5),
    conv("padding-above-kernel-strided", (1, 2, 3), (2, 2, 2), padding=9, stride=4),
    conv("crop", (2, 2, 9, 8), (3, 2, 3, 2), padding=((-1, -2), (-3, 0))),
    conv("crop-int", (2, 2, 9), (3, 2, 3), padding=-2),
    conv("crop-ints", (2, 2, 9, 7), (3, 2, 3, 2), padding=(-2, 1)),
    conv("crop-and-pad", (2, 2, 7, 6), (3, 2, 3, 2), padding=((-2, 3), (2, -1)), stride=(2, 1)),
    conv("crop-to-padding-only", (2, 2, 3), (3, 2, 2), padding=((4, -4),)),
    conv("crop-dilated-strided", (2, 2, 15), (3, 2, 3), padding=((-3, -1),), dilation=3, stride=2),
    conv("valid", (2, 2, 6, 5), (3, 2, 3, 2), padding="valid", stride=2),
    conv("same", (2, 2, 6, 5), (3, 2, 3, 5), padding="same"),
    conv("same-even", (2, 2, 6, 5), (3, 2, 4, 2), padding="same"),
    conv("same-lower-even", (2, 2, 6, 5), (3, 2, 4, 2), padding="same_lower"),
    conv("same-strided", (2, 2, 7, 8), (3, 2, 4, 3), padding="same", stride=(3, 2)),
    conv("same-lower-strided", (2, 2, 7, 8), (3, 2, 4, 3), padding="same_lower", stride=(3, 2)),
    conv("same-stride-above-kernel", (2, 2, 9), (3, 2, 2), padding="same", stride=4),
    conv("same-dilated-even", (2, 2, 7, 6), (3, 2, 2, 4), padding="same", dilation=(3, 1)),
    conv("full", (2, 2, 4, 5), (3, 2, 3, 2), padding="full"),
    conv("full-dilated-strided", (2, 2, 5), (3, 2, 3), padding="full", dilation=2, stride=3),
    conv("causal", (2, 3, 8), (4, 3, 3), padding="causal"),
    conv("causal-dilated", (2, 3, 9), (4, 3, 2), padding="causal", dilation=4),
    conv("causal-2d-strided", (1, 2, 6, 5), (3, 2, 3, 2), padding="causal", stride=(2, 1)),
    # padding modes
    conv("reflect", (2, 2, 5, 4), (3, 2, 3, 3), padding=(2, 1), padding_mode="reflect"),
    conv("reflect-to-the-limit", (2, 2, 4), (3, 2, 3), padding=3, padding_mode="reflect"),
    conv("reflect-no-padding", (2, 2, 4), (3, 2, 3), padding_mode="reflect"),
    conv("replicate", (2, 2, 4, 3), (3, 2, 3, 2), padding=((2, 5), (0, 4)),
         padding_mode="replicate"),
    conv("replicate-one-cell", (2, 2, 1), (3, 2, 3), padding=4, padding_mode="replicate"),
    conv("circular", (2, 2, 5, 4), (3, 2, 3, 3), padding=((2, 1), (0, 3)), padding_mode="circular"),
    conv("circular-to-the-limit", (2, 2, 4), (3, 2, 3), padding=4, padding_mode="circular"),
    conv("symmetric", (2, 2, 4, 3), (3, 2, 3, 3), padding=((2, 3), (1, 0)),
         padding_mode="symmetric"),
    conv("symmetric-to-the-limit", (2, 2, 4), (3, 2, 3), padding=4, padding_mode="symmetric"),
    conv("reflect-crop", (2, 2, 6, 7), (3, 2, 3, 3), padding=((3, -2), (-1, 4)),
         padding_mode="reflect"),
    conv("replicate-crop", (2, 2, 6), (3, 2, 3), padding=((-2, 4),), padding_mode="replicate"),
    conv("circular-crop-strided", (2, 2, 6, 5), (3, 2, 3, 2), padding=((3, -4), (-2, 2)),
         padding_mode="circular", stride=2),
    conv("symmetric-crop-all-of-it", (2, 2, 4), (3, 2, 2), padding=((4, -5),),
         padding_mode="symmetric"),
    conv("reflect-same-strided", (2, 2, 7, 6), (3, 2, 4, 3), padding="same", stride=2,
         padding_mode="reflect"),
    conv("symmetric-same-lower-even", (2, 2, 5, 6), (3, 2, 2, 4), padding="same_lower",
         padding_mode="symmetric"),
    conv("circular-full-dilated", (2, 2, 6), (3, 2, 3), padding="full", dilation=2,
         padding_mode="circular"),
    conv("replicate-causal", (2, 2, 6), (3, 2, 4), padding="causal", padding_mode="replicate"),
    conv("replicate-stride-above-kernel", (2, 2, 7), (3, 2, 2), padding=((4, 3),), stride=5,
         padding_mode="replicate"),
    conv("reflect-3d-strided-dilated", (1, 2, 4, 5, 5), (2, 2, 2, 2, 3),
         padding=((1, 2), (2, 0), (0, 3)), stride=(1, 2, 2), dilation=(2, 1, 2),
         padding_mode="reflect"),
    conv("depthwise-reflect-strided", (2, 3, 6, 5), (6, 1, 3, 3), groups=3, padding=1, stride=2,
         padding_mode="reflect"),
    # one sample
    conv("one-sample-1d", (1, 3, 8), (4, 3, 3), batched=False, padding="same"),
    conv("one-sample-2d", (1, 2, 5, 6), (3, 2, 2, 3), batched=False, stride=2, padding=1),
    conv("one-sample-groups", (1, 4, 5, 4), (4, 2, 2, 3), batched=False, groups=2),
    conv("one-sample-channels-last", (1, 3, 5, 6), (4, 3, 3, 2), batched=False,
         layout="channels_last", padding=1, padding_mode="circular"),
    conv("one-sample-triple", (1, 3, 5, 6), (4, 3, 3, 2), batched=False,
         layout=("CNHW", "HWOI", "HWNC")),
    # layouts
    conv("channels-last-1d", (2, 3, 9), (4, 3, 3), layout="channels_last", stride=2, padding=1),
    conv("channels-last-2d", (2, 3, 5, 6), (4, 3, 3, 2), layout="channels_last", padding="same"),
    conv("channels-last-3d-groups", (2, 4, 3, 4, 5), (2, 2, 2, 1, 3), layout="channels_last",
         groups=2, dilation=(1, 2, 2)),
    conv("channels-last-depthwise", (2, 3, 6, 5), (6, 1, 3, 2), layout="channels_last", groups=3),
    conv("triple-keras", (2, 3, 5, 6), (4, 3, 3, 2), layout=KERAS, stride=(2, 1)),
    conv("triple-1d", (2, 3, 9), (4, 3, 3), layout=("NWC", "WIO", "NCW"), padding=1),
    conv("triple-odd", (2, 3, 5, 6), (4, 3, 3, 2), layout=("CNHW", "IOHW", "NHWC"), padding=(1, 0)),
    conv("triple-scattered", (2, 4, 6, 5), (6, 2, 3, 2), layout=("HNWC", "OHIW", "WHCN"), groups=2,
         stride=(2, 1), padding=((2, 0), (-1, 1))),
    conv("triple-3d", (1, 2, 3, 4, 5), (3, 2, 2, 3, 2), layout=("NDHWC", "ODHWI", "CNDHW"),
         padding=((1, 0), (0, 2), (0, 0)), padding_mode="symmetric"),
    # nothing there
    conv("no-samples", (0, 3, 5, 6), (4, 3, 3, 2), stride=2, padding=1),
    conv("no-samples-reflect-groups", (0, 4, 5), (2, 2, 3), groups=2, padding=2,
         padding_mode="reflect"),
    conv("no-input-channels", (2, 0, 5, 6), (4, 0, 3, 2), padding=1),
    conv("no-input-channels-no-bias", (2, 0, 5), (4, 0, 3), bias=False),
    conv("no-output-channels", (2, 3, 5, 6), (0, 3, 3, 2), padding=1),
    conv("no-channels-in-groups", (2, 0, 5), (0, 0, 3), groups=2),
    conv("empty-axis", (2, 3, 0, 4), (4, 3, 2, 3), padding=(1, 0)),
    conv("empty-axes-strided", (2, 3, 0, 0), (4, 3, 3, 2), padding=((3, 4), (0, 5)), stride=2),
    conv("empty-channels-last", (2, 3, 0), (4, 3, 2), padding=2, layout="channels_last"),
    # transposed
    transpose("1d", (2, 4, 6), (4, 3, 3)),
    transpose("2d", (2, 4, 4, 5), (4, 3, 3, 2), stride=2, padding=1),
    transpose("3d", (1, 3, 2, 3, 2), (3, 2, 2, 3, 2), stride=(2, 1, 3)),
    transpose("4d", (1, 2, 2, 1, 2, 2), (2, 3, 2, 2, 1, 2), stride=2),
    transpose("no-bias", (2, 4, 5), (4, 3, 3), stride=2, bias=False),
    transpose("output-padding", (2, 3, 4, 3), (3, 2, 3, 2), stride=(3, 2), output_padding=(2, 1)),
    transpose("output-padding-int", (2, 3, 4), (3, 2, 3), stride=3, output_padding=1, padding=1),
    transpose("output-size", (2, 3, 4, 3), (3, 2, 3, 2), stride=(3, 2), padding=1,
              output_size=(11, 5)),
    transpose("output-size-default", (2, 3, 4), (3, 2, 3), stride=2, output_size=(9,)),
    transpose("output-size-agrees", (2, 3, 4), (3, 2, 3), stride=4, output_size=(17,),
              output_padding=2),
    transpose("output-padding-beyond-kernel", (2, 3, 3), (3, 2, 2), stride=5, output_padding=4),
    transpose("dilation", (2, 3, 4, 5), (3, 2, 3, 2), stride=(2, 3), dilation=(2, 3),
              padding=(2, 1)),
    transpose("groups", (2, 6, 4, 3), (6, 2, 3, 2), groups=3, stride=2, padding=((1, 0), (0, 1))),
    transpose("depthwise", (2, 4, 5, 4), (4, 1, 3, 3), groups=4, stride=2, padding=1,
              output_padding=1),
    transpose("crop", (2, 3, 4, 3), (3, 2, 3, 2), padding=((-1, -2), (0, -1)), stride=2),
    transpose("pairs", (2, 3, 6), (3, 2, 4), padding=((3, 1),), stride=2),
    transpose("same", (2, 3, 4, 5), (3, 2, 3, 4), padding="same", stride=(2, 3)),
    transpose("same-lower", (2, 3, 4, 5), (3, 2, 4, 2), padding="same_lower", stride=2),
    transpose("same-output-size", (2, 3, 4), (3, 2, 4), padding="same", stride=3,
              output_size=(10,)),
    transpose("valid", (2, 3, 4), (3, 2, 4), padding="valid", stride=3),
    transpose("full", (2, 3, 6, 7), (3, 2, 3, 2), padding="full"),
    transpose("causal", (2, 3, 6), (3, 2, 3), padding="causal", dilation=2, stride=2),
    transpose("reflect", (2, 3, 5, 4), (3, 2, 3, 3), padding=(2, 1), padding_mode="reflect"),
    transpose("replicate-strided", (2, 3, 4), (3, 2, 3), padding=((4, 2),), stride=3,
              padding_mode="replicate", output_padding=2),
    transpose("circular", (2, 3, 6, 5), (3, 2, 3, 2), padding=((1, 2), (2, 0)), stride=(1, 2),
              padding_mode="circular"),
    transpose("symmetric-crop", (2, 3, 5), (3, 2, 3), padding=((2, -1),), padding_mode="symmetric"),
    transpose("one-sample", (1, 3, 4, 3), (3, 2, 3, 2), batched=False, stride=2),
    transpose("channels-last", (2, 4, 3, 4), (4, 3, 3, 2), layout="channels_last", stride=2,
              padding=1),
    transpose("channels-last-groups", (2, 4, 5), (4, 3, 3), layout="channels_last", stride=2,
              groups=2),
    transpose("triple", (2, 4, 3, 4), (4, 3, 3, 2), layout=("CNHW", "HWIO", "NHWC"), stride=(2, 1)),
    transpose("triple-one-sample", (1, 4, 3, 4), (4, 3, 3, 2), layout=("HWNC", "IHWO", "CHNW"),
              batched=False, padding=1),
    transpose("size-zero", (2, 3, 2, 4), (3, 2, 3, 2), padding=((2, 2), (0, 0))),
    transpose("size-zero-strided", (2, 3, 3), (3, 2, 3), padding=((3, 4),), stride=2),
    transpose("no-samples", (0, 3, 4), (3, 2, 3), stride=2),
    transpose("no-input-channels", (2, 0, 4), (0, 2, 3), stride=2),
    transpose("no-output-channels", (2, 3, 4), (3, 0, 3), stride=2),
    transpose("stride-above-kernel", (2, 3, 4, 3), (3, 2, 2, 1), stride=(4, 3)),
    transpose("1x1", (2, 4, 3, 2), (4, 3, 1, 1)),
)
# fmt: on

CASES = {case.name: case for case in TABLE}
assert len(CASES) == len(TABLE), "two cases share a name"

# What a backend other than NumPy tries in every dtype that it has.
CORE = tuple(
    CASES[name]
    for name in (
        "1d",
        "3d",
        "stride-tail",
        "depthwise-multiplier",
        "crop-and-pad",
        "circular",
        "reflect-same-strided",
        "one-sample-channels-last",
        "no-input-channels",
        "no-samples-reflect-groups",
        "transpose-output-size",
    )
)
