#!/usr/bin/env bash
# Style, types, doctests, the rules of the project, and the package as a user installs it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment

ruff check .
ruff format --check .
mypy --strict xconv
# xconv/cudnn.py has no doctest, and cannot be imported without a library that only a GPU needs
pytest --quiet --doctest-modules --junit-xml ci/reports/lint.xml --backend numpy \
    --ignore xconv/cudnn.py xconv tests/test_project.py

# A wheel, its requirements and nothing else, used from a folder that has no source.
clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$clean" .
python -m venv "$clean/venv"
"$clean/venv/bin/pip" install --quiet --constraint ci/lock.txt "$clean"/xconv-*.whl
"$clean/venv/bin/pip" check
(
    cd "$clean"
    venv/bin/python -W error -c 'import numpy, xconv; print(
        "wheel:", xconv.__file__, xconv.conv(numpy.ones((1, 1, 3)), numpy.ones((1, 1, 3))))'
)
