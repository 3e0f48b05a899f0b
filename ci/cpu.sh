#!/usr/bin/env bash
# Lint, then every test on every array library that runs on a CPU. Arguments go on to pytest;
# without any, properties are tried on at least 2,000 random cases.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment

least=$(($# ? 0 : 2000))
ci/lint.sh
pytest -n auto --hypothesis-seed 0 --junit-xml ci/reports/cpu.xml \
    --backend numpy,torch,jax,dask,array-api-strict "$@"
python ci/reports.py --examples "$least" cpu.xml
