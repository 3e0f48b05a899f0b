"""What the contractions in place have in common: `Setup`, and how blocks are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from . import padding
from .costs import Task
from .methods import TRAITS, Algorithm
from .namespace import (
    Array,
    Namespace,
    begin_block,
    cast,
    conjugate,
    dtype_name,
    dtype_of,
    scratch,
)
from .padding import Index, Reading, Source
from .plan import Banks, Boxes, Limits, Plan, at_once

Pair = tuple[Array, Array]


@dataclass(frozen=True)
class Setup:
    """What the contractions of a call have in common; kept for the next one, so it holds no array.

    ``conjugate`` says which of the two operands is to be conjugated. The task's namespace, dtype of
    products and sums, and limits have names here: each block asks for them many times.
    """

    task: Task
    conjugate: tuple[bool, bool]
    threads: int

    @cached_property
    def xp(self) -> Namespace:
        """The namespace of the task."""
        return self.task.xp

    @cached_property
    def compute(self) -> str:
        """The name of the dtype of products and sums."""
        return self.task.compute

    @cached_property
    def dtype(self) -> Any:
        """That dtype."""
        return dtype_of(self.xp, self.compute)

    @cached_property
    def limits(self) -> Limits:
        """Bytes that the call and each of its blocks may use."""
        return self.task.limits

    def workers(self, cut: Plan | Boxes | Banks) -> int:
        """Return how many threads work at blocks at a time."""
        return at_once(cut.shared, cut.block, self.limits, self.threads)

    def within(self, limits: Limits) -> Setup:
        """Return the same with other limits."""
        return replace(self, task=self.task._replace(limits=limits))

    @cached_property
    def begin(self) -> Callable[..., None]:
        """What begins a block, in which the thread's `scratch` is free again, of `least` bytes."""
        return partial(begin_block, self.xp, self.limits.ample)

    def exact(self) -> Setup:
        """Return the same with a method in which a NaN reaches only what reads it."""
        return replace(self, task=self.task._replace(method="windows"))

    def ready(self, a: Array, operand: int) -> Array:
        """Convert an operand to the dtype of the products, and conjugate it where it asks.

        It is itself, or one copy in the order of its axes.
        """
        own = a.dtype == self.dtype and not self.conjugate[operand]
        return a if own else self._copy(a, operand, self.xp.empty)

    def loaded(self, a: Array, operand: int) -> Array:
        """Return the same, a copy in `scratch`."""
        own = a.dtype == self.dtype and not self.conjugate[operand]
        return a if own else self._copy(a, operand, partial(scratch, self.xp))

    def _copy(self, a: Array, operand: int, empty: Callable[..., Array]) -> Array:
        copy = empty(a.shape, dtype=self.dtype)
        if self.conjugate[operand]:
            return self.xp.conj(a, out=copy)
        copy[...] = a
        return copy

    def read(self, x: Array, how: Reading, algorithm: Algorithm) -> Array | Source:
        """Return a box of padded coordinates of the first operand, ready; a copy in `scratch`.

        For algorithms that read it by themselves it is what they read.
        """
        if TRAITS[algorithm].reads:
            conj = partial(conjugate, self.xp) if self.conjugate[0] else None
            return Source(x, how, self.dtype, conj)
        block = padding.read(self.xp, x, how, self.compute, TRAITS[algorithm].last)
        if not self.conjugate[0]:
            return block
        if how.inside is not None and x.dtype == block.dtype:  # a view
            return self.loaded(block, 0)
        return self.xp.conj(block, out=block)


def part_of(bias: Array | None, there: Index) -> Array | None:
    """Return what is added to a box: an axis of one is for all."""
    if bias is None:
        return None
    return bias[tuple(s if n > 1 else slice(None) for s, n in zip(there, bias.shape, strict=False))]


def store(setup: Setup, there: Array, bias: Array | None, block: Array | None = None) -> None:
    """Write a block plus bias, or the bias alone, or zeros; the block may be `there` already."""
    if block is None:
        block = setup.xp.zeros((), dtype=there.dtype) if bias is None else bias
    elif bias is not None:
        block += bias
    if block is not there:
        there[...] = cast(setup.xp, block, dtype_name(there.dtype))
