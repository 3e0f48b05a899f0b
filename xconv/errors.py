"""How a call is refused: one exception inside, one message format outside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["Refusal", "public", "shown"]

P = ParamSpec("P")
R = TypeVar("R")


class Refusal(Exception):
    """A rule that the arguments of a call break.

    Parameters
    ----------
    rule : str
        What is needed, to be read after "need".
    got : str
        Every number or type involved.
    kind : type of Exception
        What the user sees: ValueError for shapes and values, TypeError for types.
    """

    def __init__(self, rule: str, got: str, kind: type[Exception] = ValueError) -> None:
        super().__init__(rule, got)
        self.rule, self.got, self.kind = rule, got, kind


def public(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """Turn a refusal into ``<function called>: need <rule>; got <numbers>``."""
    called = name or function.__name__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Refusal as refusal:
            message = f"{called}: need {refusal.rule}; got {refusal.got}"
            error = refusal.kind(message)
        raise error from None

    return call


def shown(value: object) -> str:
    """Return a short text of one line for any object, also for one whose ``repr`` fails."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = "an object without a repr"
    if len(text) > 80:
        text = f"{text[:77]}..."
    return f"{text} ({type(value).__name__})"


def one_line(error: Exception) -> str:
    """Return what another library's error says, in one line of some length."""
    return " ".join(str(error).split())[:200]
