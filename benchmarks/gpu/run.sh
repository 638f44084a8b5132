#!/bin/bash
# What needs a GPU, in at most nine minutes: tests of the kernels, speed tables, one training, the large configurations.
#   benchmarks/gpu/run.sh OUT          on the first CUDA device; results and logs go to the folder OUT
#   benchmarks/gpu/run.sh OUT small    tiny sizes on any machine: does it run?
# Each part has a limit of its own, and one that fails does not stop the others; the last lines say which did. Copy the
# .csv files into benchmarks/results, then: python -m benchmarks.report
set -u
cd "$(dirname "$0")/../.." || exit 2
OUT=$(realpath -m "${1:?expected a folder for the results}")
SMALL=${2:-}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD/src:$PWD PYTHONUNBUFFERED=1
mkdir -p "$OUT" || exit 2
FAILED=()

part() { # part NAME SECONDS COMMAND...
  local name=$1 seconds=$2 begun=$SECONDS
  shift 2
  echo "==> $name (at most $seconds s)"
  if timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$OUT/$name.log" 2>&1; then
    echo "    $((SECONDS - begun)) s"
  else
    FAILED+=("$name")
    echo "    failed with code $?; the end of $name.log:"
    tail -n 15 "$OUT/$name.log"
  fi
}

VERSIONS='
import importlib, platform, torch
names = "numpy safetensors jaxtyping lightning jsonargparse rich pyarrow PIL skimage torchmetrics transformers h5py triton".split()
for name in names:
    try:
        print(name, getattr(importlib.import_module(name), "__version__", ""))
    except ImportError as error:
        print(name, "is missing:", error)
print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device")
'
part versions 40 "$PYTHON" -c "$VERSIONS"
cat "$OUT/versions.log"
if [ "$SMALL" = small ]; then
  part kernels 120 "$PYTHON" -m pytest -q -p no:cacheprovider tests/quantizers/test_kernels_cpu.py
  part speed 240 "$PYTHON" -m benchmarks.speed --suite search --quick --out "$OUT"
  part training 120 "$PYTHON" -m gritvq fit images --config configs/images/photographs.yaml --plan.max_steps 5 \
    --plan.validate_every 0 --out "$OUT/run" --overwrite true
  part sizes 180 "$PYTHON" -m benchmarks.gpu.sizes --small --steps 8 --out "$OUT"
else
  part kernels 110 "$PYTHON" -m pytest -q -p no:cacheprovider tests/quantizers/test_kernels.py
  part speed 140 "$PYTHON" -m benchmarks.speed --suite search step --device cuda --seconds 1 --out "$OUT"
  part training 90 "$PYTHON" -m gritvq fit images --config configs/images/photographs.yaml --plan.accelerator gpu \
    --out "$OUT/run" --overwrite true
  part sizes 140 "$PYTHON" -m benchmarks.gpu.sizes --out "$OUT"
fi
[ -f "$OUT/run/metrics.json" ] && cp "$OUT/run/metrics.json" "$OUT/training.json"
rm -rf "$OUT/run"
if [ ${#FAILED[@]} -gt 0 ]; then
  echo "failed: ${FAILED[*]}"
  exit 1
fi
echo "all parts ran"
