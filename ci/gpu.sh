#!/usr/bin/env bash
# Every test on the GPU. Installs nothing: PYTHON (default: python3) has CuPy, PyTorch with CUDA,
# pytest, Hypothesis, SciPy, ONNX, ".[demo]" and what xconv requires. Arguments go on to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD

"$python" - <<'END'
import platform

import array_api_compat
import cupy
import numpy
import torch

for index in range(cupy.cuda.runtime.getDeviceCount()):
    print("device:", cupy.cuda.runtime.getDeviceProperties(index)["name"].decode())
if float(cupy.arange(5.0).sum()) != 10 or float(torch.arange(5.0, device="cuda").sum()) != 10:
    raise SystemExit("the GPU does not add up")
print("driver and runtime:", cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion())
print("Python", platform.python_version())
for library in (cupy, torch, numpy, array_api_compat):
    print(library.__name__, library.__version__)
END

"$python" -m pytest --junit-xml ci/reports/gpu.xml --backend numpy,cupy,torch-cuda "$@"
"$python" ci/reports.py --ran cupy torch-cuda
