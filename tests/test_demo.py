"""The demo: what it learns, that it repeats itself, and what it says when something is missing."""

import re
import subprocess
import sys

import numpy as np
import pytest

from xconv import demo
from xconv.__main__ import main


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "xconv", *arguments], capture_output=True, text=True, timeout=500
    )


def test_reads_digits(tmp_path):
    picture = tmp_path / "digits.png"
    done = command("--plot", str(picture), "--backend", "numpy")
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr  # the progress bar
    device, check, accuracy, plot = done.stdout.splitlines()
    assert device.startswith("device: numpy") and device.endswith("cpu")
    errors = [float(error) for error in re.findall(r"\d\.\de-\d+", check)]
    assert len(errors) == 2 and max(errors) < 1e-5
    assert float(re.search(r"([\d.]+)%", accuracy).group(1)) >= 97.5
    assert plot == f"plot: {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_without_a_plot_nothing_is_drawn(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("xconv.__main__.run", lambda *names, **more: asked.append((names, more)))
    monkeypatch.setattr("xconv.__main__.draw", None)
    assert main(["--epochs", "3"]) == 0
    assert asked == [((None,), {"seed": 0, "epochs": 3})]
    assert "plot" not in capsys.readouterr().out


def test_a_wrong_gradient_is_noticed(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 1, 8, 8)).astype("float32")
    target, right = np.full((4, 10), 0.1, "float32"), demo.divergence
    network = demo.Network(rng, x)
    assert demo.check_network(network, x, target) < 1e-5

    def wrong(y, target):
        value, slope = right(y, target)
        return value, 1.01 * slope

    monkeypatch.setattr(demo, "divergence", wrong)
    with pytest.raises(AssertionError, match="need a gradient within 1e-5"):
        demo.check_network(network, x, target)


def test_gradients_where_every_relu_switches():
    """Black images and no bias: the loss has a kink there, and its gradient is that of one side."""
    rng = np.random.default_rng(0)
    x, target = np.zeros((4, 1, 8, 8), "float32"), np.full((4, 10), 0.05, "float32")
    target[:, 0] = 0.55
    network = demo.Network(rng, x)
    for conv in network.convs[:-1]:
        conv.bias = 0 * conv.bias
    assert demo.check_network(network, x, target) < 1e-5


def test_same_seed_same_result():
    first, again, other = (demo.run("numpy", seed=seed, epochs=1) for seed in (3, 3, 4))
    assert first.losses == again.losses != other.losses
    for a, b in zip(first.network.weights, again.network.weights, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    np.testing.assert_array_equal(first.read, again.read, strict=True)


@pytest.mark.backends("torch", "jax", "cupy")
def test_other_libraries_learn_the_same(backend):
    losses = []
    for name in ("numpy", backend.name):
        images, _, targets = demo.load_digits(demo.pick_backend(name)[0])
        rng = np.random.default_rng(0)
        network = demo.Network(rng, images)
        losses.append(demo.train(network, images[:128], targets[:128], 1, rng))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.backends("torch", "cupy")
def test_other_libraries_run_it_all(backend, capsys):
    result = demo.run(backend.name, epochs=2)
    assert f"device: {backend.name}" in capsys.readouterr().out
    assert result.accuracy > 0.9


def test_without_a_gpu_it_is_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", None)
    assert demo.pick_backend(None)[1].startswith("numpy")


@pytest.mark.parametrize(
    ("missing", "arguments", "hint"),
    [
        (
            "array_api_compat.cupy",
            ["--backend", "cupy"],
            "cupy; install it: pip install '.[cuda13]'",
        ),
        ("array_api_compat.torch", ["--backend", "torch"], "torch; install it: pip install torch"),
        ("jax.numpy", ["--backend", "jax"], "jax; install it: pip install jax"),
        ("sklearn.datasets", [], "sklearn; install it: pip install scikit-learn"),
        ("tqdm", [], "tqdm; install it: pip install tqdm"),
        (
            "matplotlib.figure",
            ["--plot", "a.png"],
            "matplotlib; install it: pip install matplotlib",
        ),
    ],
)
def test_missing_library(monkeypatch, capsys, missing, arguments, hint):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xconv: cannot import {hint}")


def test_no_device_answers(monkeypatch, capsys):
    class Broken:
        def zeros(self, shape):
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected\nand more")

    monkeypatch.setattr(demo, "require", lambda *_: Broken())
    assert main(["--backend", "cupy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "xconv: no device answers cupy: cudaErrorNoDevice: no CUDA-capable device is detected"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "need --epochs >= 1, --seed >= 0; got 0, 0"),
        (["--seed", "-1"], "need --epochs >= 1, --seed >= 0; got 20, -1"),
        (["--plot", "digits.words"], "need --plot to name a picture such as digits.png; got "),
        (["--plot", "no/such/a.png"], "need --plot to name a file in a folder that exists; got "),
    ],
)
def test_refuses(capsys, arguments, message):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xconv: {message}")


def test_unknown_backend(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--backend", "abacus"])
    assert "numpy" in capsys.readouterr().err
