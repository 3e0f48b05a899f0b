"""Layers that hold their weights: `Conv` and `ConvTranspose`."""

from __future__ import annotations

import inspect
import math
from typing import Any

from .convolution import conv, conv_transpose
from .errors import Refusal, public, shown
from .geometry import index, per_axis, sizes
from .geometry import options as shape_options
from .gradients import ConvGrads, conv_backward, conv_transpose_backward
from .layout import layout_axes
from .namespace import Array, accept, cast, check_bytes, dtype_name, random_uniform
from .validation import how

__all__ = ["Conv", "ConvTranspose"]

SHAPES = ("stride", "padding", "dilation", "groups", "padding_mode")
HOW = ("dtype", "method", "max_workspace")


class _Layer:
    """Weights, options, and the arrays of the last call."""

    _transposed: bool
    _forward: Any
    _backward: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        bias: bool = True,
        rng: Any = None,
        like: Array | None = None,
        **options: Any,
    ) -> None:
        setup = public(self._setup, type(self).__name__)
        setup(in_channels, out_channels, kernel_size, bias, rng, like, options)

    def _setup(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        bias: bool,
        rng: Any,
        like: Array | None,
        options: dict[str, Any],
    ) -> None:
        """Check the sizes and draw the weights."""
        C, K = index(in_channels, "in_channels"), index(out_channels, "out_channels")
        W = sizes(kernel_size, "kernel_size")
        G = index(options.get("groups", 1), "groups")
        if min(C, K, G, *W) < 1 or C % G or K % G:
            raise Refusal(
                "channels, kernel sizes and groups of at least 1, and groups to divide channels",
                f"in_channels {C}, out_channels {K}, kernel_size {W}, groups {G}",
            )
        known = dict([*inspect.signature(type(self)._forward).parameters.items()][3:])
        for name in options:
            if name not in known:
                names = ", ".join((*known, "bias", "rng", "like"))
                raise Refusal(f"options among {names}", name, TypeError)
        shape_options(len(W), *(options.get(name, known[name].default) for name in SHAPES))
        if self._transposed:
            per_axis(options.get("output_padding", 0), "output_padding", len(W), 0)
        how(*(options.get(name, known[name].default) for name in HOW))
        if type(bias) is not bool:
            raise Refusal("bias to be a bool", shown(bias), TypeError)
        axes = layout_axes(options.get("layout", "channels_first"), len(W), self._transposed).w
        # one side of w has the channels of all groups, the other those of one
        one, every = (K // G, C) if self._transposed else (C // G, K)
        shape = axes.shape(one, W, every)
        check_bytes(shape, "float64")  # as which they are drawn
        bound = 1 / math.sqrt(one * math.prod(W))
        self.weight: Array = random_uniform(shape, bound, rng, like)
        self.bias: Array | None = random_uniform((K,), bound, rng, like) if bias else None
        self.options = options
        self._given: tuple[Array, Array] | None = None

    def __repr__(self) -> str:
        """Return the shape of the weights and the options."""
        given = "".join(f", {name}={value!r}" for name, value in self.options.items())
        name, bias = type(self).__name__, self.bias is not None
        return f"{name}(weight {tuple(self.weight.shape)}, bias={bias}{given})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the arrays of the last call where the layer is copied or pickled."""
        return {**self.__dict__, "_given": None}

    def __call__(self, x: Array) -> Array:
        """Return the layer's output for x, and remember x and the weights for `backward`.

        They are not copied: do not write to them before that.
        """
        y = type(self)._forward(x, self.weight, self.bias, **self.options)
        self._given = x, self.weight
        return y

    def backward(self, dy: Array) -> ConvGrads:
        """Return the gradients of the last call from that of its output.

        Parameters
        ----------
        dy : array
            Gradient of the output, of its shape.

        Returns
        -------
        ConvGrads
            ``dx``, ``dw`` and ``db``, in the dtypes of x and of the weights at that call, and of
            the bias; the last is None for a layer without bias.
        """
        if self._given is None:
            raise ValueError(
                f"{type(self).__name__}.backward: need a call of the layer before; got none"
            )
        mask = (True, True, self.bias is not None)
        grads: ConvGrads = type(self)._backward(dy, *self._given, output_mask=mask, **self.options)
        if self.bias is None:
            return grads
        xp, (db,) = accept(db=grads.db)
        return grads._replace(db=cast(xp, db, dtype_name(self.bias.dtype)))


class Conv(_Layer):
    """A convolution with its weights.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of x and of y.
    kernel_size : tuple of int
        One entry per spatial axis; their number gives the rank.
    bias : bool
        Whether there is a bias.
    rng : numpy.random.Generator, optional
        Draws the weights; a new one by default.
    like : array, optional
        Gives library, dtype and device of the weights: NumPy float32 by default.
    **options
        Those of `xconv.conv`.

    Attributes
    ----------
    weight : array, shape (K, C / groups, *W), or as the layout has it
        Kaiming-uniform: between ±1 / sqrt(C / groups * prod(W)) [1]_.
    bias : array, shape (K,), or None
        Between the same bounds.
    options : dict
        What every call is given.

    Raises
    ------
    ValueError
        If sizes do not fit.
    TypeError
        If a size is no int, or the kernel size no tuple.

    References
    ----------
    .. [1] K. He et al., "Delving deep into rectifiers", ICCV 2015, arXiv:1502.01852, with the
       gain that PyTorch gives its convolutions.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv.nn import Conv
    >>> layer = Conv(3, 8, (5, 5), rng=np.random.default_rng(0), stride=2, padding=2)
    >>> y = layer(np.ones((10, 3, 32, 32), np.float32))
    >>> y.shape
    (10, 8, 16, 16)
    >>> grads = layer.backward(np.ones_like(y))
    >>> grads.dw.shape
    (8, 3, 5, 5)
    >>> layer.weight = layer.weight - 0.01 * grads.dw
    >>> layer.bias = layer.bias - 0.01 * grads.db
    """

    _transposed = False
    _forward, _backward = conv, conv_backward


class ConvTranspose(_Layer):
    """A transposed convolution with its weights.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of x and of y.
    kernel_size : tuple of int
        One entry per spatial axis; their number gives the rank.
    bias : bool
        Whether there is a bias.
    rng : numpy.random.Generator, optional
        Draws the weights; a new one by default.
    like : array, optional
        Gives library, dtype and device of the weights: NumPy float32 by default.
    **options
        Those of `xconv.conv_transpose`.

    Attributes
    ----------
    weight : array, shape (C, K / groups, *W), or as the layout has it
        Between ±1 / sqrt(K / groups * prod(W)), as PyTorch draws them.
    bias : array, shape (K,), or None
        Between the same bounds.
    options : dict
        What every call is given.

    Raises
    ------
    ValueError
        If sizes do not fit.
    TypeError
        If a size is no int, or the kernel size no tuple.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv.nn import ConvTranspose
    >>> layer = ConvTranspose(8, 3, (4, 4), stride=2, padding=1)
    >>> layer(np.ones((10, 8, 16, 16), np.float32)).shape
    (10, 3, 32, 32)
    """

    _transposed = True
    _forward, _backward = conv_transpose, conv_transpose_backward
