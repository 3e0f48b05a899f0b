"""What every test shares: which array libraries take part, and how many examples Hypothesis draws.

`--backend NAME` (repeated, or with commas) selects; without it every library that loads takes part.
One that is asked for and missing fails the run. One that is not selected is not there: its tests
are deselected, never skipped.

A test that takes `backend` runs once per selected one, of those in its
`@pytest.mark.backends("torch", ...)` where it has that mark. The mark alone makes a test need one
of them.

The report says how many examples each property of Hypothesis was tried on; ci/reports.py adds up.
"""

import sys
from functools import wraps

import backends
import pytest
from hypothesis import HealthCheck, is_hypothesis_test, seed, settings

SELECTED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xconv")
    group.addoption("--backend", action="append", metavar="NAME", help="array libraries to test")
    group.addoption("--samples", type=int, default=100, help="Hypothesis examples per property")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "backends(*names): needs one of these array libraries")
    config.stash[SELECTED] = selection(config.getoption("backend"))
    settings.register_profile(
        "xconv",
        max_examples=config.getoption("samples"),
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("xconv")


def selection(asked: list[str] | None) -> list[str]:
    if not asked:
        return backends.answering()
    names = [name for part in asked for name in part.split(",")]
    for name in names:
        if name not in backends.LOADERS:
            raise pytest.UsageError(f"--backend {name}: choose from {', '.join(backends.LOADERS)}")
        try:
            backends.load(name)
        except Exception as error:
            raise pytest.UsageError(f"--backend {name} is missing: {error}") from error
    return list(dict.fromkeys(names))


def wanted(node: pytest.Item | pytest.Function, config: pytest.Config) -> list[str]:
    """The selected backends that a test is for."""
    mark = node.get_closest_marker("backends")
    return [n for n in config.stash[SELECTED] if mark is None or n in mark.args]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = wanted(metafunc.definition, metafunc.config)
        metafunc.parametrize("backend", [backends.load(n) for n in names], ids=names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def stays(item: pytest.Item) -> bool:
        needs = item.get_closest_marker("backends") or "backend" in item.fixturenames
        return bool(wanted(item, config)) or not needs

    dropped = [item for item in items if not stays(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if stays(item)]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """Count the examples that a property holds for; what Hypothesis discards is none.

    With `--hypothesis-seed` each property still draws cases of its own.
    """
    if not is_hypothesis_test(pyfuncitem.obj):
        return (yield)
    asked = pyfuncitem.config.getoption("--hypothesis-seed")
    if asked is not None:
        seed(f"{asked} {pyfuncitem.nodeid}")(pyfuncitem.obj)
    given, count = pyfuncitem.obj.hypothesis, 0
    run = given.inner_test

    @wraps(run)
    def counted(*args, **options):
        nonlocal count
        run(*args, **options)
        count += 1

    given.inner_test = counted
    try:
        return (yield)
    finally:
        given.inner_test = run
        pyfuncitem.user_properties.append(("examples", count))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Let go of what JAX compiled for a module's tests: gigabytes, by the end."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
