"""The gradients of `conv` and `conv_transpose`: the same three contractions again."""

from __future__ import annotations

from typing import Any, NamedTuple

from .call import Call
from .dtypes import DTypes
from .errors import public
from .namespace import INTEGER, Array, accept, dtype_name
from .validation import (
    check_shape,
    checked_flag,
    checked_mask,
    forward_call,
    input_call,
    transposed_call,
    weight_call,
)

OPTIONAL = ("ddx", "ddw", "ddb")


class ConvGrads(NamedTuple):
    """Gradients of a convolution; None where they were not asked for."""

    dx: Array | None
    dw: Array | None
    db: Array | None


@public
def conv_backward(
    dy: Array,
    x: Array,
    w: Array,
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
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> ConvGrads:
    """Return the gradients of ``conv(x, w, b)`` from that of its result.

    Parameters
    ----------
    dy : array, shape (N, K, *O)
        Gradient of the result.
    x : array, shape (N, C, *I)
        Samples that were convolved, or one sample.
    w : array, shape (K, C / groups, *W)
        Kernels.
    stride, padding, dilation, groups, padding_mode, layout, method, max_workspace : optional
        Those of the call to `conv`.
    dtype : dtype, optional
        Dtype of sums, to which the arrays must promote.
    output_mask : tuple of three bool
        Which of dx, dw and db to compute.

    Returns
    -------
    ConvGrads
        ``dx`` shaped as x, ``dw`` as w, ``db`` (K,), each None where masked. ``dx`` and ``dw``
        have their array's dtype if that is floating or complex, else ``result_type`` of dy and the
        other array; ``db`` has dy's. Complex gradients follow PyTorch: ``dx`` is the adjoint, with
        conj(w). The gradient of a real array is its real part.

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If arrays are not plain, dense arrays of one library and device, or dtypes do not promote.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv, conv_backward
    >>> x, w = np.arange(4.0).reshape(1, 1, 4), np.array([[[1.0, 2.0]]])
    >>> dy = np.ones_like(conv(x, w))
    >>> conv_backward(dy, x, w)
    ConvGrads(dx=array([[[1., 3., 3., 2.]]]), dw=array([[[3., 6.]]]), db=array([3.]))
    """
    xp, (dy, x, w) = accept(dy=dy, x=x, w=w)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = forward_call(xp, tuple(x.shape), tuple(w.shape), settings)
    check_shape(dy, "dy", call.y_shape, call.geom.rank, settings)
    want_x, want_w, want_b = checked_mask(output_mask)
    for_x = call.types(dy, w, call.input_terms, like=x)
    for_w = call.types(dy, x, call.weight_terms, like=w)
    return ConvGrads(
        call.grad_input([(dy, w)], None, for_x, x, conjugate=True) if want_x else None,
        call.grad_weight(x, dy, for_w) if want_w else None,
        call.bias_grad(dy, call.layout.y) if want_b else None,
    )


@public
def conv_transpose_backward(
    dy: Array,
    x: Array,
    w: Array,
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
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> ConvGrads:
    """Return the gradients of ``conv_transpose(x, w, b)`` from that of its result.

    Parameters
    ----------
    dy : array, shape (N, K, *I)
        Gradient of the result.
    x : array, shape (N, C, *O)
        Samples that were given, or one sample.
    w : array, shape (C, K / groups, *W)
        Kernels.
    stride, padding, dilation, groups, padding_mode, layout, method, max_workspace : optional
        Those of the call to `conv_transpose`.
    dtype : dtype, optional
        Dtype of sums, to which the arrays must promote.
    output_padding, output_size : optional
        Those of the call to `conv_transpose`.
    output_mask : tuple of three bool
        Which of dx, dw and db to compute.

    Returns
    -------
    ConvGrads
        ``dx`` shaped as x, ``dw`` as w, ``db`` (K,); see `conv_backward`.

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If arrays are not plain, dense arrays of one library and device, or dtypes do not promote.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv_transpose_backward
    >>> x, w = np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0]]])
    >>> conv_transpose_backward(np.ones((1, 1, 4)), x, w, stride=2)
    ConvGrads(dx=array([[[11., 11.]]]), dw=array([[[3., 3.]]]), db=array([4.]))
    """
    xp, (dy, x, w) = accept(dy=dy, x=x, w=w)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = transposed_call(
        xp, tuple(x.shape), tuple(w.shape), output_padding, output_size, settings
    )
    check_shape(dy, "dy", call.x_shape, call.geom.rank, settings)
    want_x, want_w, want_b = checked_mask(output_mask)
    for_x = call.types(dy, w, call.forward_terms, like=x)
    for_w = call.types(dy, x, call.weight_terms, like=w)
    return ConvGrads(
        call.forward([(dy, w)], None, for_x, x, conjugate=True) if want_x else None,
        call.grad_weight(dy, x, for_w, conjugate=(False, True)) if want_w else None,
        call.bias_grad(dy, call.layout.x) if want_b else None,
    )


@public
def conv_grad_input(
    dy: Array,
    w: Array,
    input_size: tuple[int, ...],
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
    """Return the gradient of `conv` with respect to x.

    With stride s it does the work of the forward pass: no inserted zero is multiplied.

    Parameters
    ----------
    dy : array, shape (N, K, *O)
        Gradient of the result.
    w : array, shape (K, C / groups, *W)
        Kernels.
    input_size : tuple of int
        The spatial sizes of x, which dy does not tell when the stride is not 1.
    stride, padding, dilation, groups, padding_mode, layout, method, max_workspace : optional
        Those of the call to `conv`.
    dtype : dtype, optional
        Dtype of sums and result; a real one takes the real part. By default
        ``result_type(dy, w)``.

    Returns
    -------
    array, shape (N, C, *I)
        The gradient; for complex arrays the adjoint, with conj(w).

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If arrays are not plain, dense arrays of one library and device, dtypes do not promote,
        or `input_size` is an int.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv_grad_input
    >>> dy, w = np.array([[[1.0, 2.0]]]), np.array([[[1.0, 10.0]]])
    >>> conv_grad_input(dy, w, (5,), stride=2)
    array([[[ 1., 10.,  2., 20.,  0.]]])
    """
    xp, (dy, w) = accept(dy=dy, w=w)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = input_call(xp, tuple(dy.shape), tuple(w.shape), input_size, settings)
    types = call.types(dy, w, call.input_terms, real_part=True)
    return call.grad_input([(dy, w)], None, types, dy, conjugate=True)


@public
def conv_grad_weight(
    dy: Array,
    x: Array,
    kernel_size: tuple[int, ...],
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
    per_sample: bool = False,
) -> Array:
    """Return the gradient of `conv` with respect to w.

    Parameters
    ----------
    dy : array, shape (N, K, *O)
        Gradient of the result.
    x : array, shape (N, C, *I)
        Samples that were convolved, or one sample.
    kernel_size : tuple of int
        The spatial sizes of w; their number is the number of spatial axes.
    stride, padding, dilation, groups, padding_mode, layout, method, max_workspace : optional
        Those of the call to `conv`.
    dtype : dtype, optional
        Dtype of sums and result; a real one takes the real part. By default
        ``result_type(dy, x)``.
    per_sample : bool
        Whether to return one gradient for each sample instead of their sum.

    Returns
    -------
    array, shape (K, C / groups, *W), or (N, K, C / groups, *W) per sample
        The gradient; for complex arrays with conj(x).

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If arrays are not plain, dense arrays of one library and device, dtypes do not promote,
        or `kernel_size` is an int.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv_grad_weight
    >>> dy, x = np.array([[[1.0, 2.0]]]), np.arange(4.0).reshape(1, 1, 4)
    >>> conv_grad_weight(dy, x, (3,))
    array([[[2., 5., 8.]]])
    """
    xp, (dy, x) = accept(dy=dy, x=x)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = weight_call(xp, tuple(dy.shape), tuple(x.shape), kernel_size, settings)
    types = call.types(dy, x, call.weight_terms, real_part=True)
    return call.grad_weight(x, dy, types, per_sample=checked_flag(per_sample, "per_sample"))


@public
def conv_double_backward(
    ddx: Array | None,
    ddw: Array | None,
    ddb: Array | None,
    dy: Array,
    x: Array,
    w: Array,
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
) -> tuple[Array, Array, Array]:
    """Return the gradients of `conv_backward` from those of its results.

    ``ddy = conv(ddx, w) + conv(x, ddw) + ddb``, ``dx = conv_grad_input(dy, ddw)`` and
    ``dw = conv_grad_weight(dy, ddx)``: the form is bilinear, so nothing new appears.

    Parameters
    ----------
    ddx : array shaped as x, or None
        Gradient of ``dx``; None contributes nothing.
    ddw : array shaped as w, or None
        Gradient of ``dw``.
    ddb : array, shape (K,), or None
        Gradient of ``db``.
    dy, x, w : array
        The arguments of `conv_backward`.
    stride, padding, dilation, groups, padding_mode, layout, method, max_workspace : optional
        Those of the call to `conv_backward`.
    dtype : dtype, optional
        Dtype of sums, to which the arrays must promote.

    Returns
    -------
    ddy, dx, dw : array
        Gradients with respect to dy, x and w; zeros where nothing contributes.

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If arrays are not plain, dense arrays of one library and device, or dtypes do not promote.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv_double_backward
    >>> x, w, dy = np.arange(4.0).reshape(1, 1, 4), np.ones((1, 1, 2)), np.ones((1, 1, 3))
    >>> ddy, dx, dw = conv_double_backward(x, None, None, dy, x, w)
    >>> ddy, dx, dw
    (array([[[1., 3., 5.]]]), array([[[0., 0., 0., 0.]]]), array([[[3., 6.]]]))
    """
    xp, (ddx, ddw, ddb, dy, x, w) = accept(OPTIONAL, ddx=ddx, ddw=ddw, ddb=ddb, dy=dy, x=x, w=w)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = forward_call(xp, tuple(x.shape), tuple(w.shape), settings)
    check_shape(dy, "dy", call.y_shape, call.geom.rank, settings)
    check_shape(ddb, "ddb", (call.geom.K,))
    ddy = _second(call, ddx, ddw, ddb, dy, x, w, transposed=False)
    dx = dw = None
    if ddw is not None:
        types = call.types(dy, ddw, call.input_terms, like=x)
        dx = call.grad_input([(dy, ddw)], None, types, x, conjugate=True)
    if ddx is not None:
        types = call.types(dy, ddx, call.weight_terms, like=w)
        dw = call.grad_weight(ddx, dy, types)
    dx = _zeros(call, x, dy, w) if dx is None else dx
    dw = _zeros(call, w, dy, x) if dw is None else dw
    return ddy, dx, dw


@public
def conv_transpose_double_backward(
    ddx: Array | None,
    ddw: Array | None,
    ddb: Array | None,
    dy: Array,
    x: Array,
    w: Array,
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
) -> tuple[Array, Array, Array]:
    """Return the gradients of `conv_transpose_backward` from those of its results.

    As `conv_double_backward`, with the roles of `conv` and its transpose exchanged.

    Parameters
    ----------
    ddx : array shaped as x, or None
        Gradient of ``dx``; None contributes nothing.
    ddw : array shaped as w, or None
        Gradient of ``dw``.
    ddb : array, shape (K,), or None
        Gradient of ``db``.
    dy, x, w : array
        The arguments of `conv_transpose_backward`.
    stride, padding, dilation, groups, padding_mode, layout, method, max_workspace : optional
        Those of the call to `conv_transpose_backward`.
    dtype : dtype, optional
        Dtype of sums, to which the arrays must promote.
    output_padding, output_size : optional
        Those of the call to `conv_transpose_backward`.

    Returns
    -------
    ddy, dx, dw : array
        Gradients with respect to dy, x and w; zeros where nothing contributes.

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If arrays are not plain, dense arrays of one library and device, or dtypes do not promote.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import conv_transpose_double_backward
    >>> x, w, dy = np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.arange(4.0).reshape(1, 1, 4)
    >>> ddy, dx, dw = conv_transpose_double_backward(None, w, None, dy, x, w, stride=2)
    >>> ddy, dx, dw
    (array([[[1., 1., 1., 1.]]]), array([[[1., 5.]]]), array([[[0., 0.]]]))
    """
    xp, (ddx, ddw, ddb, dy, x, w) = accept(OPTIONAL, ddx=ddx, ddw=ddw, ddb=ddb, dy=dy, x=x, w=w)
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = transposed_call(
        xp, tuple(x.shape), tuple(w.shape), output_padding, output_size, settings
    )
    check_shape(dy, "dy", call.x_shape, call.geom.rank, settings)
    check_shape(ddb, "ddb", (call.geom.C,))
    ddy = _second(call, ddx, ddw, ddb, dy, x, w, transposed=True)
    dx = dw = None
    if ddw is not None:
        types = call.types(dy, ddw, call.forward_terms, like=x)
        dx = call.forward([(dy, ddw)], None, types, x, conjugate=True)
    if ddx is not None:
        types = call.types(dy, ddx, call.weight_terms, like=w)
        dw = call.grad_weight(dy, ddx, types, conjugate=(False, True))
    dx = _zeros(call, x, dy, w) if dx is None else dx
    dw = _zeros(call, w, dy, x) if dw is None else dw
    return ddy, dx, dw


def _second(
    call: Call,
    ddx: Array | None,
    ddw: Array | None,
    ddb: Array | None,
    dy: Array,
    x: Array,
    w: Array,
    transposed: bool,
) -> Array:
    """Return the gradient with respect to dy: the two halves of a bilinear form, and the bias."""
    check_shape(ddx, "ddx", tuple(x.shape))
    check_shape(ddw, "ddw", tuple(w.shape))
    contraction = call.grad_input if transposed else call.forward
    terms = call.input_terms if transposed else call.forward_terms
    pairs = [(a, k) for a, k in ((ddx, w), (x, ddw)) if a is not None and k is not None]
    types = call.types(x, w, terms, like=dy)
    for a, k in pairs:
        types = types.wider(call.xp, call.types(a, k, terms, like=dy))
    if ddb is not None:
        own = dtype_name(ddb.dtype)
        like = own if dtype_name(dy.dtype) in INTEGER else types.result
        types = types.wider(call.xp, DTypes(own, like))
    return contraction(pairs, ddb, types, dy)


def _zeros(call: Call, like: Array, a: Array, b: Array) -> Array:
    """Return the gradient of an array to which nothing contributes."""
    return call.zeros(tuple(like.shape), call.types(a, b, 0, like=like).result, like)
