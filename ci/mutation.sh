#!/usr/bin/env bash
# Whether the tests notice changes in the code: ci/mutation.sh [arguments for ci/mutation.py].
# Fails where a changed program passes all tests and ci/survivors.txt does not say why.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment

OMP_NUM_THREADS=1 python ci/mutation.py "$@"
