"""Time a training step of the demo's network, at 256 digits, on NumPy and on CuPy.

All take the same steps from the same weights. Fails where their losses differ.
"""

import sys
import time

import numpy as np

from xconv import demo

BATCH, STEPS, RATE = 256, 100, 0.1
COMPARED = 20  # the first losses: rounding errors grow from step to step


def train(library: str, method: str) -> tuple[float, np.ndarray]:
    """Return the seconds of a step, and the losses."""
    xp, where = demo.pick_backend(library)
    images, _, targets = demo.load_digits(xp)
    x, target = images[:BATCH], targets[:BATCH]
    network = demo.Network(np.random.default_rng(0), images)
    for conv in network.convs:
        conv.options["method"] = method
    losses = []
    for step in range(2 * STEPS):
        if step == STEPS:  # kernels are compiled, plans made, memory taken
            float(losses[-1])  # waits for the device
            start = time.perf_counter()
        loss, dscores = demo.divergence(network(x), target)
        losses.append(loss)
        grads = network.backward(dscores)
        moves = zip(network.weights, grads, strict=True)
        network.weights = [w - RATE * g for w, g in moves]
    float(losses[-1])
    seconds = (time.perf_counter() - start) / STEPS
    print(f"{where}, method {method}: {seconds * 1e3:.3f} ms a training step of {BATCH} digits")
    return seconds, np.array([float(loss) for loss in losses])


variants = [tuple(name.split(":")) for name in sys.argv[1:]]
times, losses = zip(*(train(*variant) for variant in variants), strict=True)
for variant, seconds, own in zip(variants[1:], times[1:], losses[1:], strict=True):
    apart = float(np.max(np.abs(own - losses[0])[:COMPARED] / losses[0][:COMPARED]))
    print(f"{':'.join(variant)}: {times[0] / seconds:.1f} times as fast, losses {apart:.1e} apart")
    if not apart < 1e-2:
        sys.exit("need losses within 1e-2 of each other")
if "cupy" in sys.modules:
    pool = sys.modules["cupy"].get_default_memory_pool()
    print(f"device memory that CuPy took: {pool.total_bytes() / 2**20:.1f} MiB")
