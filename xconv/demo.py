"""Learn to read handwritten digits: ``python -m xconv``.

A small convolutional network learns the UCI digits that scikit-learn ships (1797 images of 8x8
pixels). Read it to see how the library is used: the layers are called forward, then backward, on
the arrays of whichever library was picked; the few lines between them are all in this file.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from xconv import nn, testing

Array = Any  # of the library that was picked

# In channels, out channels, kernel size and options of each layer. A ReLU follows all but the last.
LAYERS: list[tuple[int, int, tuple[int, int], dict[str, Any]]] = [
    (1, 16, (3, 3), {"padding": 1}),  # (N, 1, 8, 8) -> (N, 16, 8, 8)
    (16, 32, (3, 3), {"padding": 1, "stride": 2}),  # -> (N, 32, 4, 4)
    (32, 64, (3, 3), {"padding": 1, "stride": 2}),  # -> (N, 64, 2, 2)
    (64, 10, (2, 2), {}),  # -> (N, 10, 1, 1), one score per digit
]
HELD_OUT = 360  # images that the network never learns from
BATCH, RATE = 32, 5e-3
SURE = 0.82  # the probability to aim at for the true digit; the other nine share the rest
BACKENDS = {  # the namespace, and what to install for it
    "numpy": ("array_api_compat.numpy", "numpy"),
    "cupy": ("array_api_compat.cupy", "'.[cuda13]' (CUDA 12: '.[cuda12]')"),
    "torch": ("array_api_compat.torch", "torch"),
    "jax": ("jax.numpy", "jax"),
}


class Network:
    """The convolutions of `LAYERS` with a ReLU between each two, in the array library of `like`."""

    def __init__(self, rng: np.random.Generator, like: Array) -> None:
        self.convs = [
            nn.Conv(c, k, size, rng=rng, like=like, **opts) for c, k, size, opts in LAYERS
        ]
        self.active: list[Array] = []  # 1 where a ReLU let its input through, else 0

    @property
    def weights(self) -> list[Array]:
        """Weight and bias of every layer, in one flat list."""
        return [array for conv in self.convs for array in (conv.weight, conv.bias)]

    @weights.setter
    def weights(self, arrays: Sequence[Array]) -> None:
        for conv, weight, bias in zip(self.convs, arrays[::2], arrays[1::2], strict=True):
            conv.weight, conv.bias = weight, bias

    def __call__(self, x: Array, active: Sequence[Array] = ()) -> Array:
        """Return the scores ``(N, 10)`` of the images ``(N, 1, 8, 8)``.

        With `active` of an earlier call, every ReLU lets through what it let through then.
        """
        xp = array_namespace(x)
        self.active = list(active)
        for i, conv in enumerate(self.convs[:-1]):
            y = conv(x)
            if not active:
                self.active.append(xp.astype(y > 0, y.dtype))
            x = y * self.active[i]
        return self.convs[-1](x)[:, :, 0, 0]

    def backward(self, dscores: Array) -> list[Array]:
        """Return the gradients of `weights`, given that of the scores last returned."""
        grads = [self.convs[-1].backward(dscores[:, :, None, None])]
        for conv, active in zip(self.convs[-2::-1], self.active[::-1], strict=True):
            grads.append(conv.backward(grads[-1].dx * active))
        return [array for layer in reversed(grads) for array in (layer.dw, layer.db)]


def divergence(scores: Array, target: Array) -> tuple[Array, Array]:
    """Return the loss, and its gradient in `scores`; both arrays are ``(N, 10)``.

    The loss is the cross-entropy of `target` and the softmax of `scores`, less the least it can be.
    """
    xp = array_namespace(scores)
    below = scores - xp.max(scores, axis=1, keepdims=True)
    log_p = below - xp.log(xp.sum(xp.exp(below), axis=1, keepdims=True))
    n = scores.shape[0]
    return xp.sum(target * (xp.log(target) - log_p)) / n, (xp.exp(log_p) - target) / n


def train(
    network: Network, x: Array, target: Array, epochs: int, rng: np.random.Generator
) -> list[float]:
    """Train `network` with Adam, its rate falling along half a cosine; return every step's loss."""
    tqdm = require("tqdm", "tqdm").tqdm
    xp = array_namespace(x)
    starts = range(0, x.shape[0] - BATCH + 1, BATCH)  # whole batches only
    means = squares = [0 * w for w in network.weights]
    losses: list[Array] = []
    with tqdm(total=epochs * len(starts), desc="learning", unit="step") as bar:
        for _ in range(epochs):
            order = xp.asarray(rng.permutation(x.shape[0]), device=x.device)
            for start in starts:
                batch = order[start : start + BATCH]
                scores = network(xp.take(x, batch, axis=0))
                loss, dscores = divergence(scores, xp.take(target, batch, axis=0))
                grads = network.backward(dscores)
                losses.append(loss)

                step = len(losses)
                means = [0.9 * m + 0.1 * g for m, g in zip(means, grads, strict=True)]
                squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, grads, strict=True)]
                rate = RATE * (1 + math.cos(math.pi * step / bar.total)) / 2
                rate *= math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                moves = zip(network.weights, means, squares, strict=True)
                network.weights = [w - rate * m / (s**0.5 + 1e-8) for w, m, s in moves]
                bar.update()
            bar.set_postfix(loss=f"{float(losses[-1]):.4f}")  # once an epoch: a GPU need not wait
    return [float(loss) for loss in losses]


def check_network(network: Network, x: Array, target: Array) -> float:
    """Return how far the network's gradient is from a central difference, both in float64.

    It is the difference of two slopes along a random direction, over the norm of the gradient. The
    ReLUs stay as they are at `x`: where one switches, there is no derivative to compare with.
    """
    xp = array_namespace(x)
    x, target, *weights = (xp.astype(a, xp.float64) for a in (x, target, *network.weights))
    rng = np.random.default_rng(0)
    exact = Network(rng, like=x)
    ways = [xp.asarray(rng.normal(size=w.shape), device=x.device) for w in weights]

    def loss_at(step: float) -> Array:
        exact.weights = [w + step * way for w, way in zip(weights, ways, strict=True)]
        return divergence(exact(x, active), target)[0]

    exact.weights = weights
    grads = exact.backward(divergence(exact(x), target)[1])
    slope = sum(xp.sum(g * way) for g, way in zip(grads, ways, strict=True))
    active, h = exact.active, 1e-6
    measured = (loss_at(h) - loss_at(-h)) / (2 * h)
    error = float(abs(measured - slope) / sum(xp.sum(g * g) for g in grads) ** 0.5)
    if not error < 1e-5:
        raise AssertionError(f"need a gradient within 1e-5 of the differences; got {error:.1e}")
    return error


def check_layers(network: Network, x: Array) -> float:
    """Return the largest error of the layers' gradients, each alone, fed what it gets for `x`."""
    error = 0.0
    for conv in network.convs:
        error = max(error, testing.check_gradients(x, conv.weight, conv.bias, **conv.options))
        y = conv(x)
        x = y * (y > 0)
    return error


class Result(NamedTuple):
    """What a run learned, and what it read in the digits held out (these in NumPy)."""

    network: Network
    losses: list[float]
    images: np.ndarray
    read: np.ndarray
    true: np.ndarray
    accuracy: float


def run(backend: str | None = None, *, seed: int = 0, epochs: int = 20) -> Result:
    """Learn, check the gradients and test; print what comes out."""
    xp, where = pick_backend(backend)
    images, labels, targets = load_digits(xp)
    rng = np.random.default_rng(seed)
    network = Network(rng, like=images)
    print(f"device: {where}", flush=True)
    losses = train(network, images[HELD_OUT:], targets[HELD_OUT:], epochs, rng)

    images, targets = images[:HELD_OUT], targets[:HELD_OUT]
    whole = check_network(network, images[:64], targets[:64])
    layers = check_layers(network, images[:4])
    print(f"gradient check: off by {whole:.1e} in the network, {layers:.1e} in a layer alone")
    read, true = on_host(xp.argmax(network(images), axis=1)), on_host(labels[:HELD_OUT])
    accuracy = float(np.mean(read == true))
    print(f"test accuracy: {accuracy:.2%} of {HELD_OUT} digits that it never saw")
    return Result(network, losses, on_host(images), read, true, accuracy)


def load_digits(xp: Any) -> tuple[Array, Array, Array]:
    """Return images ``(N, 1, 8, 8)``, their digits ``(N,)`` and targets ``(N, 10)``, shuffled."""
    digits = require("sklearn.datasets", "scikit-learn").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the same whatever the seed
    images, labels = digits.images[order, None] / 16, digits.target[order]
    targets = np.where(labels[:, None] == np.arange(10), SURE, (1 - SURE) / 9)
    single = {"dtype": xp.float32}
    return xp.asarray(images, **single), xp.asarray(labels), xp.asarray(targets, **single)


def pick_backend(name: str | None) -> tuple[Any, str]:
    """Return an array namespace, and its library, version and device to print.

    Without a name it is CuPy's if a GPU answers, else NumPy's.
    """
    if name is None:
        try:
            return pick_backend("cupy")
        except Unavailable:
            return pick_backend("numpy")
    xp = require(*BACKENDS[name])
    if name == "jax":  # the gradient check needs float64
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    try:
        where = device(xp.zeros(1) + 1)
    except RuntimeError as error:
        raise Unavailable(f"no device answers {name}: {error}".splitlines()[0]) from None
    if name == "cupy":
        where = xp.cuda.runtime.getDeviceProperties(where.id)["name"].decode()
    return xp, f"{name} {importlib.import_module(name).__version__} on {where}"


class Unavailable(Exception):
    """What the demo cannot do, in one line that says what would help."""


def require(module: str, package: str) -> Any:
    """Import what is needed, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.removeprefix("array_api_compat.").partition(".")[0]
        raise Unavailable(f"cannot import {name}; install it: pip install {package}") from None


def on_host(x: Array) -> np.ndarray:
    """Copy an array to NumPy."""
    return np.asarray(x.get() if hasattr(x, "get") else x)
