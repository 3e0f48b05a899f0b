"""The rules that the project keeps about itself: names, imports, docstrings, requirements."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import backends
import numpy as np
import pytest
import scipy.ndimage

import xconv

ROOT = Path(__file__).parent.parent
PUBLIC = {
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
}
# Every module imports from the lines above its own, and none of its own line: so algorithms do
# not know each other, and there is no cycle.
LINES = """
    errors
    geometry
    cores namespace
    workers
    dtypes layout padding products
    bands depthwise diagonals fft lines pointwise scatter taps windows winograd
    methods
    plan
    costs
    choice
    schedule
    setup
    banks
    blocks
    cells
    slabs
    chunks cudnn expression
    call
    validation
    convolution explanation gradients folding sizes
    nn testing
"""
OUTSIDE = {  # who may import what, of what does not come with Python
    "chunks": {"dask"},
    "slabs": {"dask"},
    "cudnn": {"cudnn"},
    "bench": {"cupy", "numpy", "tqdm"},
    "namespace": {"array_api_compat", "numpy"},
    "workers": {"threadpoolctl"},
    "demo": {"array_api_compat", "numpy"},
    "demo_scale": {"numpy"},
    "__main__": {"numpy"},
}
USERS = {"demo", "demo_scale", "__main__"}  # they stand outside, and use public names only
FUNCTIONS = [xconv.testing.check_adjoint, xconv.testing.check_gradients] + [
    function
    for name in sorted(PUBLIC)
    if inspect.isfunction(function := getattr(xconv, name, None))
]
MODULES = sorted((ROOT / "xconv").rglob("*.py"))
BENCH = {path.stem for path in MODULES if path.parent.name == "bench"}


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All imports of a module, functions' own too, but those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [node for node in found if node not in typing_only]


def imported(path: Path) -> tuple[set[str], set[str]]:
    """The modules of this package and the packages outside that a module imports."""
    inside, outside = set(), set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif (node.module or "") in ("", "xconv"):  # from . import a, b
            names = [f"xconv.{alias.name}" for alias in node.names]
        else:
            names = [f"xconv.{node.module}" if node.level else node.module or ""]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "xconv":
                inside.add(rest.partition(".")[0])
            else:
                outside.add(package)
    return inside, outside


def test_public_names():
    assert set(xconv.__all__) == PUBLIC
    assert len(xconv.__all__) == len(PUBLIC)
    assert all(hasattr(xconv, name) for name in PUBLIC)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_imports_go_one_way(path):
    inside, outside = imported(path)
    own = path.stem
    if path.parent.name == "bench":
        assert inside <= PUBLIC | BENCH | {""}
        own = "bench"
    elif own == "__init__":
        pass
    elif own in USERS:
        assert inside <= PUBLIC | USERS
    else:
        lines = [line.split() for line in LINES.strip().splitlines()]
        place = next((i for i, line in enumerate(lines) if own in line), None)
        assert place is not None, f"give {own} its place in LINES"
        assert inside <= {name for line in lines[:place] for name in line}
    foreign = {name for name in outside if name not in sys.stdlib_module_names}
    assert foreign <= OUTSIDE.get(own, set())


def test_importing_xconv_imports_nothing_optional():
    code = "import sys, xconv; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not loaded & {"cudnn", "cupy", "torch", "jax", "dask", "scipy", "sklearn"}
    assert not loaded & {"matplotlib", "pytest"}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_docstring_is_complete(function):
    text = inspect.getdoc(function) or ""
    sections = re.findall(r"^(\w[\w ]*)\n-{3,}$", text, re.MULTILINE)
    order = [s for s in sections if s in ("Parameters", "Returns", "Raises", "Examples")]
    assert order == ["Parameters", "Returns", "Raises", "Examples"]
    documented = re.split(r"^\w[\w ]*\n-{3,}$", text, flags=re.MULTILINE)
    block = documented[1 + sections.index("Parameters")]
    names = {
        name.strip("* ")
        for line in re.findall(r"^(\S[^:\n]*) :", block, re.MULTILINE)
        for name in line.split(",")
    }
    assert names >= set(inspect.signature(function).parameters) - {"options"}
    assert ">>>" in documented[1 + sections.index("Examples")]


def test_three_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w-]+", line).group() for line in project["dependencies"]]
    assert names == ["array-api-compat", "numpy", "threadpoolctl"]
    assert "numpy>=2.3.5" in project["dependencies"]
    assert set(project["optional-dependencies"]) == {
        "cuda12",
        "cuda13",
        "dask",
        "scale",
        "demo",
        "test",
    }


def test_lock_pins_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["demo"] + extras["test"] + ["hatchling"]
    lines = (ROOT / "ci/lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins}
    assert {re.match(r"[\w-]+", line).group().lower() for line in wanted} <= pinned
    assert "torch==2.13.0" in pins


def test_ci_asks_for_every_backend():
    scripts = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "ci").glob("*.sh"))
    asked = {name for part in re.findall(r"--backend (\S+)", scripts) for name in part.split(",")}
    assert asked == set(backends.LOADERS)


def test_readme_runs_as_pasted():
    """The Python of the README, in one session and from top to bottom, and the seed's gradients."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    session = {}
    for block in blocks:
        exec(block, session)
    assert session["y_last"].shape == (8, 60, 60, 16)
    smooth = scipy.ndimage.correlate(session["image"], np.ones((3, 3)) / 9)
    np.testing.assert_allclose(session["smooth"], smooth, atol=1e-12)
    assert session["dF"].shape == (32, 16, 5, 5)
    assert (session["dB"] == 28 * 28).all()
    assert session["dA_prev"].max() == 32 * 25


def test_readme_names_the_test_command():
    assert "```sh\nci/cpu.sh\n```" in (ROOT / "README.md").read_text("utf-8")
    assert (ROOT / ".ci" / "run").read_text("utf-8").strip().endswith("ci/cpu.sh")
