"""`conv` and `conv_transpose`, and the two of a fixed rank."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from .errors import Refusal, public
from .namespace import Array, accept
from .validation import check_bias, forward_call, transposed_call

P = ParamSpec("P")
R = TypeVar("R")


@public
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    /,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: Any = "channels_first",
    dtype: Any = None,
    method: str = "auto",
    max_workspace: int | None = None,
) -> Array:
    """Convolve samples of any number of spatial axes with a bank of kernels.

    ``y[n, k, o] = b[k] + sum over c, t of x[n, c, stride*o + dilation*t - low] * w[k, c, t]``,
    the correlation that deep-learning libraries call convolution: kernels are not flipped.

    Parameters
    ----------
    x : array, shape (N, C, *I)
        N samples of C channels, or one sample of shape (C, *I). NumPy, CuPy, PyTorch, JAX, Dask
        or any array of the array API standard, of a real, complex or integer dtype.
    w : array, shape (K, C / groups, *W)
        K kernels. The number of spatial axes, from 1 to 30, is ``w.ndim - 2``.
    b : array, shape (K,), optional
        Bias, added to every output position. Its dtype must promote to the result's.
    stride : int or tuple of int
        Input cells between neighbouring outputs, for all axes or one entry per axis.
    padding : int, tuple of int, tuple of (low, high) or str
        Cells added on both sides of all axes, of each axis, or on each side of each axis;
        negative numbers crop. Or a name: "valid" is none; "same" gives ``ceil(I / stride)``
        outputs, with the odd cell at the end, "same_lower" with it at the start; "full" is
        ``dilation * (W - 1)`` on both sides and "causal" on the low side alone.
    dilation : int or tuple of int
        Input cells between neighbouring kernel positions.
    groups : int
        Divides channels and kernels into as many independent convolutions; ``groups=C`` is a
        depthwise convolution.
    padding_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}
        What the added cells hold: zeros, the mirrored input without ("reflect") or with
        ("symmetric") its edge cell, the edge cell, or the input's other end. Positive padding
        comes first, from the uncropped input, then negative padding crops. Without `padding`
        there are none. NumPy's "edge" is "replicate", and SciPy's "reflect" is "symmetric".
    layout : {"channels_first", "channels_last"} or tuple of three str
        Order of the axes. "channels_last" is Keras's: x (N, *I, C), w (*W, C / groups, K), and
        y (N, *O, K). Three strings are JAX's, of x, w and y: ("NHWC", "HWIO", "NHWC").
    dtype : dtype, optional
        Dtype of sums and result, to which x and w must promote, such as int32 for int8 arrays.
        The default is the namespace's ``result_type(x, w)``, in which integers wrap as in `matmul`.
        16-bit floats are summed in float32 and rounded once.
    method : {"auto", "windows", "taps", "winograd", "fft", "cudnn"}
        The algorithm; see the notes. "auto" estimates times from shapes, dtype and the kind of
        library alone, and `explain` says what it takes.
    max_workspace : int, optional
        Bytes that NumPy and CuPy may use beyond arguments and result, 64 MiB by default and
        512 MiB on a GPU; in Dask, each task beyond the slab that it reads and its chunk. Other
        libraries evaluate one expression, which this does not bound. Below some MiB calls get
        slow, as blocks get small. With less than the default no array is kept between calls;
        otherwise each of NumPy's threads keeps up to 16 MiB, beside these.

    Returns
    -------
    array, shape (N, K, *O)
        ``O = (I + low + high - dilation*(W - 1) - 1) // stride + 1``, of the arguments' library
        and device, sharing no memory with them.

    Raises
    ------
    ValueError
        If shapes and options do not fit, an output size is below 1, or `max_workspace` holds no
        block or so little that more than 2**22 products of blocks were needed.
    TypeError
        If arrays are not plain, dense arrays of one library and device, or dtypes do not promote.

    See Also
    --------
    conv_backward : Its gradients.
    conv_transpose : Its adjoint.
    explain : What a call would do.

    Notes
    -----
    Methods: "windows" multiplies all sliding windows by the kernels at once (im2col, in blocks),
    "taps" has one product per kernel position; both are exact on small integers. "winograd" (stride
    1, kernels of at most 5 per axis) and "fft" take fewer operations, for floating and
    complex arrays; their error is relative to the largest magnitudes of a block of x and w: within
    5e-6 of the largest result in float32 for winograd, 2e-6 for fft, 1e-14 in float64. "auto" takes
    these two in NumPy (and chunks of it) alone, and computes a block that holds a NaN or an
    infinity again with "windows", so that one of x reaches just the outputs that read it; when
    named, they do not check.
    "cudnn" is NVIDIA's library, for real floating CuPy arrays of up to 3 spatial axes, with the
    package nvidia-cudnn-frontend: only its deterministic engines, and float32 in full unless CuPy
    is set to allow TF32. "auto" takes it where it was measured to be faster, and then only engines
    in which a NaN reaches just what reads it.

    Dask arrays stay lazy: each chunk of the result is one task, a call on the slab that it reads,
    and each face of a chunk that others read is one more. Along samples and space the result is cut
    where the input is (with a stride, where the same cells are), along channels not at all. Arrays
    beside a Dask array may be of its chunks' library, and weights are one chunk.

    Differentiable by PyTorch and JAX, and usable inside `jax.jit`, `jax.grad` and `jax.vmap`; for
    `jax.jit` itself the options are static, as in ``jax.jit(conv, static_argnames="stride")``.
    On NumPy, results do not depend on the number of threads.

    References
    ----------
    .. [1] V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning",
       arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv
    >>> x = np.arange(5.0).reshape(1, 1, 5)
    >>> conv(x, np.array([[[-1.0, 0.0, 1.0]]]))
    array([[[2., 2., 2.]]])
    >>> conv(x, np.array([[[-1.0, 0.0, 1.0]]]), padding="same", padding_mode="replicate")
    array([[[1., 2., 2., 2., 1.]]])
    >>> image, kernels = np.ones((3, 32, 48)), np.ones((16, 3, 5, 5))
    >>> conv(image, kernels, np.zeros(16), stride=2, padding=2).shape
    (16, 16, 24)
    """
    xp, (x, w, b) = accept(("b",), x=x, w=w, b=b)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = forward_call(xp, tuple(x.shape), tuple(w.shape), settings)
    types = call.types(x, w, call.forward_terms)
    if b is not None:
        check_bias(xp, b, call.geom.K, types.result)
    return call.forward([(x, w)], b, types, x)


@public
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    /,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: Any = "channels_first",
    dtype: Any = None,
    method: str = "auto",
    max_workspace: int | None = None,
    output_padding: Any = 0,
    output_size: tuple[int, ...] | None = None,
) -> Array:
    """Apply the transpose of a convolution: from its output's size to its input's.

    The linear map whose matrix is the transpose of that of `conv` with the same weights and
    options, whatever the padding and its mode. It is the input gradient of `conv`, without
    conjugation, and no inserted zero is multiplied.

    Parameters
    ----------
    x : array, shape (N, C, *O)
        Samples, or one sample of shape (C, *O): shaped as the output of the convolution.
    w : array, shape (C, K / groups, *W)
        Kernels: those of the convolution from K to C channels that is transposed.
    b : array, shape (K,), optional
        Bias, added to every position of the result.
    stride, padding, dilation, groups, padding_mode, layout : optional
        Those of the convolution that is transposed; see `conv`. With "channels_last", w is
        (*W, K / groups, C). Of three strings the first is this x and the last the result, and
        I and O of the middle one are those of the convolution that is transposed.
    dtype, method, max_workspace : optional
        As in `conv`.
    output_padding : int or tuple of int
        Cells added to the result's size, below the stride: several input sizes have one output
        size when the stride is not 1. They hold what the convolution's padding would leave
        there, not necessarily zeros. 0 with the paddings "same" and "same_lower".
    output_size : tuple of int, optional
        The result's spatial sizes, instead of `output_padding`: any that `conv` maps back to
        those of x. Both may be given if they agree.

    Returns
    -------
    array, shape (N, K, *I)
        ``I = (O - 1)*stride + dilation*(W - 1) + 1 - low - high + output_padding``, or
        ``O * stride`` with the paddings "same" and "same_lower".

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If arrays are not plain, dense arrays of one library and device, or dtypes do not promote.

    See Also
    --------
    conv_transpose_backward : Its gradients.
    conv : Its adjoint, for real arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv_transpose
    >>> x, w = np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0, 100.0]]])
    >>> conv_transpose(x, w, stride=2)
    array([[[  1.,  10., 102.,  20., 200.]]])
    >>> conv_transpose(x, w, stride=2, output_size=(6,))
    array([[[  1.,  10., 102.,  20., 200.,   0.]]])
    """
    xp, (x, w, b) = accept(("b",), x=x, w=w, b=b)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = transposed_call(
        xp, tuple(x.shape), tuple(w.shape), output_padding, output_size, settings
    )
    types = call.types(x, w, call.input_terms)
    if b is not None:
        check_bias(xp, b, call.geom.C, types.result)
    return call.grad_input([(x, w)], b, types, x)


def _of_rank(function: Callable[P, R], rank: int, x: str, w: str, shape: str) -> Callable[P, R]:
    """Return `function` for weights of `rank` spatial axes alone."""
    name = f"{function.__name__}{rank}d"
    inner = inspect.unwrap(function)

    def ranked(*args: P.args, **kwargs: P.kwargs) -> R:
        weights = accept(x=args[0], w=args[1])[1][1] if len(args) > 1 else None
        if weights is not None and len(weights.shape) != rank + 2:
            raise Refusal(
                f"w of {rank + 2} dimensions, {rank} of them spatial", f"w of shape {weights.shape}"
            )
        result: R = inner(*args, **kwargs)
        return result

    functools.update_wrapper(ranked, function)
    del ranked.__dict__["__wrapped__"]
    ranked.__name__ = ranked.__qualname__ = name
    ranked.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    ones = ", 1" * rank
    ranked.__doc__ = f"""Apply `{function.__name__}` with {rank} spatial axes.

    The same function and the same options; weights of another rank are refused.

    Parameters
    ----------
    x, w, b : array
        x {x}, or one sample without N; w {w}; b (K,), optional.
    {", ".join(p for p in inspect.signature(function).parameters if p not in "xwb")} : optional
        As in `{function.__name__}`.

    Returns
    -------
    array
        As from `{function.__name__}`.

    Raises
    ------
    ValueError
        If w does not have {rank} spatial axes, and as `{function.__name__}` does.
    TypeError
        As `{function.__name__}` does.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import {name}
    >>> {name}(np.ones((1, 2{", 4" * rank})), np.ones((2, 2{ones}))).shape
    {shape}
    """
    return public(ranked)


conv1d = _of_rank(conv, 1, "(N, C, I)", "(K, C / groups, W)", "(1, 2, 4)")
conv2d = _of_rank(conv, 2, "(N, C, I1, I2)", "(K, C / groups, W1, W2)", "(1, 2, 4, 4)")
conv3d = _of_rank(conv, 3, "(N, C, I1, I2, I3)", "(K, C / groups, W1, W2, W3)", "(1, 2, 4, 4, 4)")
conv_transpose1d = _of_rank(conv_transpose, 1, "(N, C, O)", "(C, K / groups, W)", "(1, 2, 4)")
conv_transpose2d = _of_rank(
    conv_transpose, 2, "(N, C, O1, O2)", "(C, K / groups, W1, W2)", "(1, 2, 4, 4)"
)
conv_transpose3d = _of_rank(
    conv_transpose, 3, "(N, C, O1, O2, O3)", "(C, K / groups, W1, W2, W3)", "(1, 2, 4, 4, 4)"
)
