#!/usr/bin/env bash
# Random cases for some minutes: ci/soak.sh [MINUTES, default 20] [arguments for pytest].
# Every round draws other cases; a failure prints how to draw its case again. Rounds are whole, and
# without arguments for pytest at least 20,000 cases are tried.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment

minutes=${1:-20}
least=$(($# > 1 ? 0 : 20000))
rm -f ci/reports/soak-*.xml
for ((round = 1; round == 1 || SECONDS < 60 * minutes; round++)); do
    echo "round $round, after $SECONDS of $((60 * minutes)) seconds"
    pytest -n auto -m hypothesis --samples 1000 --hypothesis-seed "$RANDOM" \
        --junit-xml "ci/reports/soak-$round.xml" \
        --backend numpy,torch,jax,dask,array-api-strict "${@:2}"
done
python ci/reports.py --examples "$least" "soak-*.xml"
