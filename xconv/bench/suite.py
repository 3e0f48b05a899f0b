"""The layers that are timed: fixed before anything was tuned to them, and each counts once."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

Ints = tuple[int, ...]
CONTRACTIONS = ("forward", "grad_input", "grad_weight")


class Layer(NamedTuple):
    """One convolution layer with all its sizes, channels first.

    ``I`` and ``W`` are the input and kernel sizes of each axis; stride, padding and dilation are
    the same on all axes.
    """

    group: str
    N: int
    C: int
    K: int
    I: Ints
    W: Ints
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        """Sizes as text: ``8x64->128 56x56 3x3/2``."""
        sizes = "x".join(map(str, self.I))
        kernel = "x".join(map(str, self.W))
        text = f"{self.N}x{self.C}->{self.K} {sizes} {kernel}"
        text += f"/{self.stride}" * (self.stride > 1) + f" d{self.dilation}" * (self.dilation > 1)
        return text + " depthwise" * (self.groups > 1)

    @property
    def O(self) -> Ints:  # noqa: E743 - the letter of the geometry
        """Output sizes."""
        return tuple(
            (i + 2 * self.padding - self.dilation * (w - 1) - 1) // self.stride + 1
            for i, w in zip(self.I, self.W, strict=True)
        )

    @property
    def shapes(self) -> tuple[Ints, Ints, Ints]:
        """Shapes of x, w and y."""
        return (
            (self.N, self.C, *self.I),
            (self.K, self.C // self.groups, *self.W),
            (self.N, self.K, *self.O),
        )

    @property
    def flops(self) -> int:
        """Multiplications and additions of any of the three contractions, done directly."""
        return 2 * self.N * self.K * math.prod(self.O) * math.prod(self.shapes[1][1:])

    @property
    def numbers(self) -> int:
        """Numbers in x, w and y together: what any method must read or write."""
        return sum(math.prod(shape) for shape in self.shapes)


def _square(group: str, N: int, C: int, K: int, size: int, kernel: int, stride: int = 1) -> Layer:
    """Return a layer of square images and kernels, padded to ``size / stride`` outputs."""
    return Layer(group, N, C, K, (size,) * 2, (kernel,) * 2, stride, kernel // 2)


# C, K, size, kernel, stride: https://arxiv.org/abs/1512.03385, its stride in the 3x3 layers as
# in torchvision's version
_RESNET50 = (
    (3, 64, 224, 7, 2),
    (64, 64, 56, 1, 1),
    (64, 64, 56, 3, 1),
    (64, 256, 56, 1, 1),
    (256, 64, 56, 1, 1),
    (256, 128, 56, 1, 1),
    (128, 128, 56, 3, 2),
    (256, 512, 56, 1, 2),
    (128, 512, 28, 1, 1),
    (512, 128, 28, 1, 1),
    (128, 128, 28, 3, 1),
    (512, 256, 28, 1, 1),
    (256, 256, 28, 3, 2),
    (512, 1024, 28, 1, 2),
    (256, 1024, 14, 1, 1),
    (1024, 256, 14, 1, 1),
    (256, 256, 14, 3, 1),
    (1024, 512, 14, 1, 1),
    (512, 512, 14, 3, 2),
    (1024, 2048, 14, 1, 2),
    (512, 2048, 7, 1, 1),
    (2048, 512, 7, 1, 1),
    (512, 512, 7, 3, 1),
)
# C, K, size: https://arxiv.org/abs/1409.1556
_VGG16 = (
    (3, 64, 224),
    (64, 64, 224),
    (64, 128, 112),
    (128, 128, 112),
    (128, 256, 56),
    (256, 256, 56),
    (256, 512, 28),
    (512, 512, 28),
    (512, 512, 14),
)
# channels, size, stride, and C, K, size: https://arxiv.org/abs/1801.04381
_MOBILENET_DEPTHWISE = (
    (32, 112, 1),
    (96, 112, 2),
    (144, 56, 1),
    (144, 56, 2),
    (192, 28, 1),
    (192, 28, 2),
    (384, 14, 1),
    (576, 14, 1),
    (576, 14, 2),
    (960, 7, 1),
)
_MOBILENET_POINTWISE = (
    (32, 16, 112),
    (16, 96, 112),
    (96, 24, 56),
    (24, 144, 56),
    (144, 24, 56),
    (144, 32, 28),
    (32, 192, 28),
    (192, 32, 28),
    (192, 64, 14),
    (64, 384, 14),
    (384, 64, 14),
    (384, 96, 14),
    (96, 576, 14),
    (576, 96, 14),
    (576, 160, 7),
    (160, 960, 7),
    (960, 160, 7),
    (960, 320, 7),
    (320, 1280, 7),
)

SUITE: tuple[Layer, ...] = (
    *(_square("ResNet-50, batch 1", 1, *sizes) for sizes in _RESNET50),
    *(_square("ResNet-50, batch 8", 8, *sizes) for sizes in _RESNET50),
    *(_square("VGG-16 3x3", 1, *sizes, 3) for sizes in _VGG16),
    Layer("LeNet-5", 128, 1, 6, (28, 28), (5, 5), padding=2),
    Layer("LeNet-5", 128, 6, 16, (14, 14), (5, 5)),
    Layer("LeNet-5", 128, 16, 120, (5, 5), (5, 5)),
    *(
        Layer("MobileNetV2 depthwise", 8, C, C, (size,) * 2, (3, 3), stride, 1, 1, C)
        for C, size, stride in _MOBILENET_DEPTHWISE
    ),
    *(_square("MobileNetV2 pointwise", 8, *sizes, 1) for sizes in _MOBILENET_POINTWISE),
    Layer("large kernels", 1, 128, 128, (32, 32), (31, 31), padding=15, groups=128),
    Layer("large kernels", 1, 1, 1, (100_000,), (1024,)),
    Layer("large kernels", 1, 1, 1, (2048, 2048), (15, 15), padding=7),
    Layer("others", 1, 16, 32, (32, 32, 32), (3, 3, 3), padding=1),
    Layer("others", 8, 64, 64, (56, 56), (3, 3), padding=2, dilation=2),
    Layer("others", 8, 32, 64, (56, 56), (5, 5), 2, padding=2),
    Layer("others", 1, 16, 32, (32, 32), (5, 5)),  # of the question that started this package
)


@cache
def layers(batch: int | None = None) -> tuple[Layer, ...]:
    """Return the suite, or each of its layers once with another number of samples."""
    if batch is None:
        return SUITE
    groups = (layer.group.partition(", batch")[0] for layer in SUITE)
    changed = zip(SUITE, groups, strict=True)
    return tuple(dict.fromkeys(layer._replace(group=group, N=batch) for layer, group in changed))
