"""The benchmark: its suite, that every library computes the same, and its command line."""

import json
import math

import numpy as np
import pytest

from xconv.bench import libraries, report
from xconv.bench.__main__ import main
from xconv.bench.measure import Job, Row
from xconv.bench.suite import CONTRACTIONS, SUITE, Layer

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


@pytest.mark.parametrize("name", ["xconv:taps", "torch", "jax", "scipy", "formulas"])
@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_every_library_computes_the_same(name, layer):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in layer.shapes]
    run, ours = libraries.runner(name, "numpy"), libraries.runner("xconv", "numpy")
    for contraction in CONTRACTIONS:
        task = run(layer, contraction, *arrays)
        if task is not None:
            want = ours(layer, contraction, *arrays)()
            got = np.asarray(task())
            np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-12)
        else:
            assert name in ("scipy", "formulas")


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


def test_the_command_says_what_it_lacks(capsys):
    for arguments, message in (
        (["--layers", "no such layer"], "got 'no such layer'"),
        (["--layers", "Net-5 and no start of a word"], "need --layers"),
        (["--libraries", "xconv", "nothing"], r"got ['nothing']"),
        (["--libraries", "xconv:foo"], r"got ['xconv:foo']"),
        (["--rounds", "0"], "got 0, "),
        (["--json", "/no such folder/rows.json"], "a folder that exists"),
        (["--load", "no such file"], "got no such file"),
        (["--libraries", "xconv", "--plot", "a.png"], "need torch"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_means_are_geometric_and_leave_out_what_is_missing():
    assert math.isclose(report.mean([4.0, None, 1.0]), 2.0)
    assert math.isnan(report.mean([None]))
    job = Job(0, "float32", "forward")
    row = Row(job, {"xconv": 3.0, "torch": 2.0}, {}, None, 1.0)
    assert row.ratio() == 1.5
    assert row.ratio("xconv", "jax") is None
