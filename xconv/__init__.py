"""Convolution, forward and backward, for every array library.

Written once against the array API: the same functions take NumPy, CuPy, PyTorch, JAX and Dask
arrays, of any number of spatial axes. `conv` documents the options that all of them share.
"""

from . import nn, testing
from .convolution import (
    conv,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from .explanation import Explanation, explain
from .folding import fold, unfold
from .gradients import (
    ConvGrads,
    conv_backward,
    conv_double_backward,
    conv_grad_input,
    conv_grad_weight,
    conv_transpose_backward,
    conv_transpose_double_backward,
)
from .sizes import conv_output_size, conv_transpose_output_size

__version__ = "0.1.0"

__all__ = [
    "ConvGrads",
    "Explanation",
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_backward",
    "conv_double_backward",
    "conv_grad_input",
    "conv_grad_weight",
    "conv_output_size",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_transpose_backward",
    "conv_transpose_double_backward",
    "conv_transpose_output_size",
    "explain",
    "fold",
    "nn",
    "testing",
    "unfold",
]
