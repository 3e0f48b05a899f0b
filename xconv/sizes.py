"""Output sizes without arrays."""

from __future__ import annotations

from typing import Any

from .errors import public
from .geometry import options, output_size, per_axis, sizes, transposed_size


@public
def conv_output_size(
    input_size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    /,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> tuple[int, ...]:
    """Return the spatial sizes of a convolution's result.

    Parameters
    ----------
    input_size, kernel_size : tuple of int
        Spatial sizes, one per axis.
    stride, padding, dilation : optional
        As in `conv`.

    Returns
    -------
    tuple of int
        ``(I + low + high - dilation*(W - 1) - 1) // stride + 1`` per axis.

    Raises
    ------
    ValueError
        If a size of the result is below 1.
    TypeError
        If a size is an int.

    Examples
    --------
    >>> from xconv import conv_output_size
    >>> conv_output_size((224, 224), (7, 7), stride=2, padding=3)
    (112, 112)
    """
    W = sizes(kernel_size, "kernel_size")
    I = sizes(input_size, "input_size", len(W))
    return output_size(I, W, options(len(W), stride, padding, dilation))[0]


@public
def conv_transpose_output_size(
    input_size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    /,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    output_padding: Any = 0,
) -> tuple[int, ...]:
    """Return the spatial sizes of a transposed convolution's result.

    Parameters
    ----------
    input_size, kernel_size : tuple of int
        Spatial sizes, one per axis.
    stride, padding, dilation, output_padding : optional
        As in `conv_transpose`.

    Returns
    -------
    tuple of int
        ``(O - 1)*stride + dilation*(W - 1) + 1 - low - high + output_padding`` per axis.

    Raises
    ------
    ValueError
        If the options do not fit.
    TypeError
        If a size is an int.

    Examples
    --------
    >>> from xconv import conv_transpose_output_size
    >>> conv_transpose_output_size((112, 112), (7, 7), stride=2, padding=3, output_padding=1)
    (224, 224)
    """
    W = sizes(kernel_size, "kernel_size")
    O = sizes(input_size, "input_size", len(W))
    opts = options(len(W), stride, padding, dilation)
    extra = per_axis(output_padding, "output_padding", len(W), 0)
    return transposed_size(O, W, opts, extra, None)
