#!/usr/bin/env bash
# Everything that needs a GPU, in the stages tests, demo, step and bench: ci/gpu.sh [arguments for
# pytest], STAGES="tests demo" ci/gpu.sh for some of them.
#
# Installs nothing. PYTHON (default: python3) has CuPy and PyTorch for CUDA, what xconv and
# ".[demo,test]" need, and nvidia-cudnn-frontend, which finds the cuDNN that PyTorch brings. What a
# machine without a network lacks can come as wheels (16 MB for an image that has CuPy, PyTorch,
# Hypothesis, ONNX, SciPy and scikit-learn), made with pip where there is a network:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels \
#         --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 array-api-compat \
#         array-api-strict dask distributed donfig google-crc32c locket msgspec numcodecs \
#         nvidia-cudnn-frontend partd tblib threadpoolctl tornado zarr zict
#     pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
stages=" ${STAGES:-tests demo step bench} "
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" - <<'PYTHON'
import importlib.util
import platform
import sys

needed = (
    "array_api_compat array_api_strict cudnn cupy dask distributed hypothesis matplotlib ml_dtypes "
    "numpy onnx pytest scipy sklearn threadpoolctl torch tqdm zarr"
)
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"missing: {', '.join(missing)}; see the head of ci/gpu.sh")

import array_api_compat
import cudnn
import cupy
import numpy
import torch

for index in range(cupy.cuda.runtime.getDeviceCount()):
    print("device:", cupy.cuda.runtime.getDeviceProperties(index)["name"].decode())
if float(cupy.arange(5.0).sum()) != 10 or float(torch.arange(5.0, device="cuda").sum()) != 10:
    sys.exit("the GPU does not add up")
print("driver and runtime:", cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion())
print("cuDNN:", cudnn.backend_version(), "and PyTorch's", torch.backends.cudnn.version())
print("Python", platform.python_version())
for library in (cupy, cudnn, torch, numpy, array_api_compat):
    print(library.__name__, library.__version__)
PYTHON

if [[ $stages == *" tests "* ]]; then
    # pytest-benchmark, where it is installed, warns of xdist, and warnings are errors
    "$python" -m pytest -p no:benchmark --junit-xml ci/reports/gpu.xml \
        --backend numpy,cupy,torch-cuda "$@"
    "$python" ci/reports.py --ran cupy torch-cuda
fi
if [[ $stages == *" demo "* ]]; then
    "$python" -m xconv --backend cupy
fi
if [[ $stages == *" step "* ]]; then
    "$python" ci/training_step.py numpy:auto cupy:auto cupy:cudnn
fi
if [[ $stages == *" bench "* ]]; then
    against=(--libraries xconv xconv:cudnn torch torch:tf32)
    most=(ResNet VGG LeNet MobileNet others) # of large kernels cuDNN does not end in time
    "$python" -m xconv.bench --backend cupy --batch 32 --dtypes float32 float16 bfloat16 \
        --layers "${most[@]}" --rounds 3 --no-memory "${against[@]}" --json ci/reports/gpu-32.json
    "$python" -m xconv.bench --backend cupy --layers large --dtypes float32 \
        --libraries xconv xconv:fft torch --rounds 3 --json ci/reports/gpu-large.json
    "$python" -m xconv.bench --backend cupy --batch 256 --dtypes float32 float16 --layers ResNet \
        --rounds 3 "${against[@]}" --json ci/reports/gpu-256.json
    CUPY_TF32=1 "$python" -m xconv.bench --backend cupy --batch 32 --dtypes float32 \
        --layers "${most[@]}" --rounds 3 --no-memory --libraries xconv:cudnn torch:tf32 \
        --json ci/reports/gpu-tf32.json
fi
