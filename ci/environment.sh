#!/usr/bin/env bash
# Sourced by the other scripts: goes to the root of the repository, and brings the development
# environment of ci/lock.txt into .venv-ci, made anew when its Python, the lock or pyproject.toml
# has changed. PYTHON names the interpreter to make it with.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

use_environment() {
    local base=${PYTHON:-python3} stamp=.venv-ci/made-from made_from
    made_from=$("$base" -c 'import sys; print(sys.base_prefix, sys.version)' && cksum pyproject.toml ci/lock.txt)
    if [[ ! -f $stamp || $(<"$stamp") != "$made_from" ]]; then
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "need Python 3.11 or newer")'
        "$base" -m venv --clear .venv-ci
        .venv-ci/bin/pip install --quiet --constraint ci/lock.txt hatchling editables
        .venv-ci/bin/pip install --quiet --constraint ci/lock.txt --no-build-isolation \
            --editable ".[demo,test]"
        printf '%s\n' "$made_from" >"$stamp"
    fi
    export PATH="$PWD/.venv-ci/bin:$PATH"
    python --version
}
