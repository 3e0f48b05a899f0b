"""The ONNX backend's own node cases for Conv, ConvTranspose, ConvInteger and Col2Im.

Inputs, attributes and expected arrays come from the `onnx` package. Its reference implementation
takes no part.
"""

from collections import Counter

import numpy as np
import pytest
from onnx import helper
from onnx.backend.test.case import node as onnx_cases
from onnx.backend.test.case.node import col2im, conv, convinteger, convtranspose  # noqa: F401

import xconv

# The import of each module files its cases; `collect_testcases` would import all 190 modules.
WANTED = {"Conv": 6, "ConvTranspose": 11, "ConvInteger": 2, "Col2Im": 5}
CASES = [
    case
    for case in onnx_cases._NodeTestCases
    if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in WANTED
]
NAMED_PADDING = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}


def shared_options(attributes, rank):
    """Stride, dilation and padding; ONNX lists every low pad first, then every high one."""
    pads = attributes.get("pads", [0] * 2 * rank)
    named = attributes.get("auto_pad", b"NOTSET").decode()
    return {
        "stride": tuple(attributes.get("strides", [1] * rank)),
        "dilation": tuple(attributes.get("dilations", [1] * rank)),
        "padding": NAMED_PADDING.get(named, tuple(zip(pads[:rank], pads[rank:], strict=True))),
    }


def run_conv(attributes, x, w, b=None):
    options = shared_options(attributes, w.ndim - 2)
    return xconv.conv(x, w, b, groups=attributes.get("group", 1), **options)


def run_conv_transpose(attributes, x, w, b=None):
    options = shared_options(attributes, w.ndim - 2)
    if "output_shape" in attributes:  # then ONNX overrules output_padding
        options["output_size"] = tuple(attributes["output_shape"])
    elif "output_padding" in attributes:
        options["output_padding"] = tuple(attributes["output_padding"])
    return xconv.conv_transpose(x, w, b, groups=attributes.get("group", 1), **options)


def run_conv_integer(attributes, x, w, x_zero=0, w_zero=0):
    options = shared_options(attributes, w.ndim - 2)
    w_zero = np.asarray(w_zero, np.int32).reshape((-1,) + (1,) * (w.ndim - 1))
    x, w = x - np.int32(x_zero), w - w_zero
    return xconv.conv(x, w, groups=attributes.get("group", 1), dtype=np.int32, **options)


def run_col2im(attributes, cols, image_shape, block_shape):
    options = shared_options(attributes, len(image_shape))
    return xconv.fold(cols, tuple(image_shape), tuple(block_shape), **options)


RUN = {
    "Conv": run_conv,
    "ConvTranspose": run_conv_transpose,
    "ConvInteger": run_conv_integer,
    "Col2Im": run_col2im,
}


def test_every_case_is_collected():
    assert Counter(case.model.graph.node[0].op_type for case in CASES) == WANTED


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx(case):
    (node,) = case.model.graph.node
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert len(case.data_sets) >= 1
    for inputs, (expected,) in case.data_sets:
        result = RUN[node.op_type](attributes, *inputs)
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=0)
