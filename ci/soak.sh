#!/usr/bin/env bash
# Random cases for some minutes: ci/soak.sh [MINUTES, default 20] [arguments for pytest].
# Every round draws other cases; a failure prints how to draw its case again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment

minutes=${1:-20}
for ((round = 1; round == 1 || SECONDS < 60 * minutes; round++)); do
    echo "round $round, after $SECONDS of $((60 * minutes)) seconds"
    pytest -n auto -m hypothesis --samples 500 --hypothesis-seed "$RANDOM" \
        --junit-xml ci/reports/soak.xml \
        --backend numpy,torch,jax,dask,array-api-strict "${@:2}"
done
