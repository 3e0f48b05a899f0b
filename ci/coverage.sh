#!/usr/bin/env bash
# Branch coverage of the package, which must be complete: ci/coverage.sh [arguments for pytest].
# Fewer random cases and dtypes than in ci/cpu.sh; what only a GPU reaches is left to ci/gpu.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment

pytest -n auto --cov --cov-report term-missing --samples 10 --hypothesis-seed 0 \
    --backend numpy,torch,jax,dask,array-api-strict "$@"
