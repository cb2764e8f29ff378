#!/usr/bin/env bash
# Runs the GPU tests and the benches, part by part, and writes each result when its part ends. `make gpu` calls it.
#
# The machine's Python is not changed: the package is installed into build/gpu, which is first in PYTHONPATH.
set -uo pipefail
cd "$(dirname "$0")/../.."
trap 'exit 130' INT
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1  # the log is complete up to the last line, even if the run is killed

fail() {
  echo "make gpu: $*" >&2
  exit 1
}

[[ ${DRY:-0} == 0 ]] && dry= || dry=1
read -ra only <<<"${ONLY:-}"
cases=full
results=${RESULTS:-results${dry:+/dry}}
python=${PYTHON:-python3}
if [[ -n $dry ]]; then
  export VITCACHE_GPU_DRY=1 TRITON_INTERPRET=1
  cases=smoke
  [[ -n ${PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
fi

shopt -s nullglob
benches=()
for file in bench/claims/bench_*.py; do
  name=${file#bench/claims/bench_}
  benches+=("${name%.py}")
done
# The sanitizers run last, as they take longest. A dry run omits them, as they check only code on a GPU.
parts=(tests "${benches[@]}")
[[ -n $dry ]] || parts+=(sanitize)
for part in "${only[@]}"; do
  [[ " tests sanitize ${benches[*]} " == *" $part "* ]] || fail "each part in ONLY must be one of: tests sanitize ${benches[*]}; got $part"
done
((${#only[@]} == 0)) || parts=("${only[@]}")

command -v "$python" >/dev/null || fail "$python was not found: set PYTHON to an interpreter"
"$python" - <<'CHECK' || exit 1
import os, sys

def fail(reason):
    sys.exit(f"make gpu: {reason}")

if sys.version_info < (3, 11):
    fail(f"vitcache needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}")
try:
    import torch
except ImportError as error:
    fail(f"vitcache needs torch 2.9 or newer, {sys.executable} has none ({error})")
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
    fail(f"vitcache needs torch 2.9 or newer, {sys.executable} has {torch.__version__}")
if "VITCACHE_GPU_DRY" not in os.environ and not torch.cuda.is_available():
    fail(f"torch {torch.__version__} of {sys.executable} finds no CUDA device; DRY=1 runs the same on the CPU")
CHECK

mkdir -p "$results" || fail "RESULTS=$results cannot be made"
log=$results/gpu.log
: >"$log" || fail "$log cannot be written"

if [[ $python != .venv/bin/python ]]; then
  # The package would include files of an earlier build, too.
  rm -rf build/lib.* build/bdist.*
  CMAKE_ARGS="-DVITCACHE_STAND_IN_FAULTS=ON ${CMAKE_ARGS:-}" \
    "$python" -m pip install --disable-pip-version-check --no-index --no-build-isolation --no-deps --upgrade \
    --target build/gpu . 2>&1 | tee -a "$log" || fail "the build failed, its output is above and in $log"
  export PYTHONPATH="$PWD/build/gpu${PYTHONPATH:+:$PYTHONPATH}"
fi

gpu_tests() {
  # tests/gpu, and the tests of other folders that have a CUDA variant. They run in a worker of pytest-xdist: if a
  # test hangs or loses the device, the worker ends and a new one runs the next test. faulthandler prints where the
  # test hangs. A thread ends the worker, as a blocking CUDA call delays every signal handler of Python.
  local options=(--durations=10)
  ! "$python" -c 'import xdist' 2>/dev/null || options+=(-n 1 --max-worker-restart 3)
  [[ -n $dry ]] || options+=(-o timeout=90 -o faulthandler_timeout=80)
  "$python" -m pytest tests/gpu tests/placement tests/triton_kernels tests/pages/test_reservation.py \
    tests/ring/test_pinned_ring.py \
    -m gpu "${options[@]}" -o timeout_method=thread --junitxml="$results/gpu-tests.xml"
}

# sanitize_with TOOL TESTS... OPTIONS...: errors that CUDA returns are not reported, as some tests cause such errors.
sanitize_with() {
  local tool=$1
  shift
  compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 \
    "$python" -m pytest -m gpu -o timeout=0 --junitxml="$results/gpu-$tool.xml" "$@"
}

sanitize() {
  [[ -z $dry ]] || { gpu_tests; return; }
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH"; return 1; }
  local code=0 kernels=(tests/triton_kernels/test_launchers.py tests/placement/test_gpu_kernels{,_store}.py)
  # The tests that launch this package's kernels at small sizes: the tool checks every access, which takes long. Without
  # torch's caching allocator each tensor is an allocation of its own, so a read past the tensor's end is found.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize_with memcheck \
    "${kernels[@]}" tests/placement/test_{ops,placement_table}.py tests/pages/test_reservation.py || code=1
  sanitize_with racecheck "${kernels[@]}" || code=1
  return $code
}

bench() {
  "$python" -m vitcache bench --bench "$1" --cases "$cases" --out "$results"
}

summary=()
failed=0
for part in "${parts[@]}"; do
  start=$SECONDS
  printf '\n%s\n' "$part" | tee -a "$log"
  case $part in
    tests) gpu_tests ;;
    sanitize) sanitize ;;
    *) bench "$part" ;;
  esac 2>&1 | tee -a "$log"
  code=${PIPESTATUS[0]}
  ((code == 0)) || failed=1
  summary+=("$(printf '%-24s %5d s  %s' "$part" $((SECONDS - start)) "$( ((code == 0)) && echo ok || echo "FAILED ($code)")")")
done

{
  printf '\nmake gpu%s, results in %s\n' "${dry:+ DRY=1}" "$results"
  printf '  %s\n' "${summary[@]}"
} | tee -a "$log"
exit $failed
