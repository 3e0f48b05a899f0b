"""The benchmark: its suite, that every library computes the same, and its command line."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from xconv.bench import libraries, report, worker
from xconv.bench.__main__ import main, progress
from xconv.bench.measure import Job, Row, Worker, measure
from xconv.bench.suite import CONTRACTIONS, SUITE, Layer, layers

SMALL = (
    Layer("t", 2, 4, 6, (9, 8), (3, 3), 2, 1),
    Layer("t", 1, 4, 4, (9, 8), (3, 3), 1, 1, 1, 4),
    Layer("t", 1, 2, 3, (11,), (3,), 1, 0, 2),
    Layer("t", 1, 1, 1, (12, 10), (5, 3), 1, 1),
)


def test_the_suite_is_the_one_that_the_readme_speaks_of():
    assert len(SUITE) == len({(layer.group, layer.name) for layer in SUITE}) == 94
    assert min(min(layer.O) for layer in SUITE) >= 1
    flops = {layer.name: layer.flops for layer in SUITE}
    assert flops["8x64->64 56x56 3x3"] == 2 * 8 * 64 * 64 * 56 * 56 * 9
    assert flops["8x144->144 56x56 3x3/2 depthwise"] == 2 * 8 * 144 * 28 * 28 * 9


def test_the_suite_with_another_batch():
    assert layers() is SUITE
    wide = layers(32)
    assert len(wide) == 94 - 23  # ResNet-50 is there at two
    assert {layer.N for layer in wide} == {32}
    assert "ResNet-50" in {layer.group for layer in wide}
    job = Job(0, "bfloat16", "forward", 32)
    assert job.layer.shapes[0] == (32, 3, 224, 224)
    assert job.bytes == 2 * job.layer.numbers
    assert Job(0, "float64", "forward").bytes == 8 * SUITE[0].numbers


def test_bfloat16_reaches_torch():
    arrays = worker.arrays(SMALL[0], "bfloat16")
    move = libraries.mover("torch", "numpy")
    task = libraries.runner("torch")(SMALL[0], "forward", *map(move, arrays))
    exact = libraries.runner("xconv")
    want = exact(SMALL[0], "forward", *(a.astype("float64") for a in arrays))()
    assert str(task().dtype) == "torch.bfloat16"
    np.testing.assert_allclose(task().float().numpy(), want, atol=0.1)


@pytest.mark.parametrize("name", ["xconv:taps", "torch", "jax", "scipy", "formulas"])
@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_every_library_computes_the_same(name, layer):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in layer.shapes]
    run, ours = libraries.runner(name), libraries.runner("xconv")
    moved = list(map(libraries.mover(name, "numpy"), arrays))
    for contraction in CONTRACTIONS:
        task = run(layer, contraction, *moved)
        if task is not None:
            want = ours(layer, contraction, *arrays)()
            got = np.asarray(task())
            np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-12)
        else:
            assert name in ("scipy", "formulas")


def test_a_layer_that_a_method_cannot_do_has_no_time(monkeypatch, capsys):
    strided = next(number for number, layer in enumerate(SUITE) if layer.stride == 2)
    job = Job(strided, "float64", "forward")
    (row,) = measure([job], ["xconv:winograd"], rounds=1, memory=False)
    assert row.seconds == {"xconv:winograd": None}
    assert (row.memory, row.error) == ({}, None)
    assert row.floor > 0
    *_, line = report.table([row], "xconv:winograd").splitlines()
    assert line.split()[-4:] == ["-"] * 4
    questions = "\n".join(json.dumps([*job, what]) for what in ("time", "memory", "error"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
    worker.main("xconv:winograd", "numpy")
    assert capsys.readouterr().out.splitlines() == ['"ready"', "null", "null", "null"]


def test_calls_of_a_sample():
    for seconds, count in ((0.2, 1), (0.02, worker.FEWEST), (0.001, 30), (0.0, worker.MOST)):
        asked = []

        def watch(task, s=seconds):
            return task(s) or s

        assert worker.calls(asked.append, watch, worker.MOST) == count
        assert len(asked) == (2 if seconds > worker.SLOW else 6)


def test_a_process_that_ends_is_named(capfd):
    with pytest.raises(RuntimeError, match=r"^the process of nothing ended: 1$"):
        Worker("nothing", "numpy", 1)
    assert "KeyError" in capfd.readouterr().err


def test_the_command_measures_prints_and_draws(tmp_path, capsys):
    file, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    arguments = ["--layers", "1x16->32 32x32 5x5", "--dtypes", "float32", "--rounds", "1"]
    arguments += ["--libraries", "xconv", "torch", "--threads", "1"]
    assert main([*arguments, "--json", str(file), "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("1x16->32 32x32 5x5") == 3
    assert "| others (1) |" in shown
    assert picture.stat().st_size > 10_000
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 3
    for row in rows:
        assert min(row["seconds"].values()) > 0
        assert 0 < row["error"] < 5e-6
        assert row["memory"]["xconv"] < 2**26
    assert main(["--load", str(file)]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:4] == shown.splitlines()[:4]


def test_some_contractions_without_torch(tmp_path):
    """Nothing is compared, and only what was measured is drawn."""
    file, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    rows = [
        Row(Job(number, "float32", "forward"), {"xconv": 3.0}, {}, None, 1.0) for number in (0, 1)
    ]
    report.save(file, {"device": "none"}, rows)
    command = [sys.executable, "-m", "xconv.bench", "--load", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3000.000") == 2
    assert "PyTorch" not in done.stdout
    rows = [row._replace(seconds={"xconv": 3.0, "torch": 2.0}) for row in rows]
    report.draw(picture, {}, rows)
    assert picture.stat().st_size > 10_000


def test_without_a_progress_bar(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    rows = iter(())
    assert progress(rows, 0) is rows


def test_the_command_says_what_it_lacks(capsys):
    for arguments, message in (
        (["--layers", "no such layer"], "got ['no such layer']"),
        (["--layers", "Net-5 and no start of a word"], "need --layers"),
        (["--libraries", "xconv", "nothing"], r"got ['nothing']"),
        (["--libraries", "xconv:foo"], r"got ['xconv:foo']"),
        (["--rounds", "0"], "got 0, "),
        (["--batch", "0"], ", 0"),
        (["--dtypes", "bfloat16"], "need --backend cupy"),
        (["--json", "/no such folder/rows.json"], "a folder that exists"),
        (["--load", "no such file"], "got no such file"),
        (["--libraries", "xconv", "--plot", "a.png"], "need torch"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_the_command_needs_a_gpu_for_cupy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--backend", "cupy"])
    assert "need CuPy and a GPU for --backend cupy; got " in capsys.readouterr().err


def test_means_are_geometric_and_leave_out_what_is_missing():
    assert math.isclose(report.mean([4.0, None, 1.0]), 2.0)
    assert math.isnan(report.mean([None]))
    job = Job(0, "float32", "forward")
    row = Row(job, {"xconv": 3.0, "torch": 2.0}, {}, None, 1.0)
    assert row.ratio() == 1.5
    assert row.ratio("xconv", "jax") is None
