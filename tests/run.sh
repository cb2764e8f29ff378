#!/usr/bin/env bash
# Runs tests part by part, and prints the time of each part and its ten slowest tests. The Makefile calls it.
#
#   run.sh test TORCHVISION       all tests but those marked `soak`, with the versions in .venv; rows of images with torchvision in
#                                 .overlays/TORCHVISION; native tests; a dry run of the GPU tests
#   run.sh oldest NAME-VERSION... the tests marked NAME, with that version from .overlays/
#   run.sh newest NAME            the tests of transformers, with the release in .overlays/NAME
#   run.sh torch NAME [ARGS...]   all tests but those marked `soak` or `triton`, with the torch in .overlays/NAME; ARGS select some
#   run.sh models NAME-VERSION... the tests of model families with the versions in .venv and .overlays/, and docs/models.md
#   run.sh soak                   the tests marked `soak`
#   run.sh fuzz SECONDS           the fuzzer of the native code, for this time, and random calls from Python, for a fifth of it
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONSAFEPATH=1
python=.venv/bin/python
# One process per core with one thread each. All tests of a file run in one process, so that its fixtures are
# made once.
export OMP_NUM_THREADS=1
pytest=("$python" -m pytest -n auto --maxprocesses 8 --dist loadfile --durations=10 --durations-min=0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT

summary=()
failed=0

# slowest: the ten slowest tests of the log, slowest first, from the durations of pytest, ctest and tests/gpu/run.sh.
slowest() {
  sed -nE -e 's/^ *([0-9]+\.[0-9]+)s (call|setup|teardown) +(.*)/\1 \3 \2/p' \
    -e 's/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: ([^ ]+) .* ([0-9]+\.[0-9]+) sec.*/\2 \1/p' \
    -e '/^  (tests|probe) /d; s/^  ([a-z]+) +([0-9]+) s  ok$/\2 bench \1/p' "$log" |
    sed 's/ call$//' | sort -rn | head -n10 | awk '{ time = $1; $1 = ""; printf "    %6.1f s %s\n", time, $0 }'
}

# part NAME COMMAND...: runs the command, and records its time, the last line that counts tests, and the
# slowest tests.
part() {
  local name=$1 start=$SECONDS
  shift
  printf '\n%s\n' "$name"
  "$@" 2>&1 | tee "$log"
  local code=${PIPESTATUS[0]} counts
  counts=$(grep -E '[0-9]+ (passed|failed|error|skipped|deselected)|tests passed|no tests' "$log" | tail -n1)
  ((code == 0)) || { failed=1; name+=" FAILED ($code)"; }
  summary+=("$(printf '%-36s %4d s  %s' "$name" $((SECONDS - start)) "$(tr -d = <<<"$counts")")" "$(slowest)")
}

# native_build SANITIZERS: builds the native tests in the folder that it sets as $build. Each test is a program, as a
# sanitizer must be loaded when the program starts. CMake cannot change the compiler of an existing build folder, so the
# folder's name contains the sanitizer and the compiler. A program ends at the first error of its sanitizer.
native_build() {
  local compiler=${CXX:-c++}
  build=build/native-tests-${1%%,*}-${compiler//[^[:alnum:]+.-]/-}
  .venv/bin/cmake -S . -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DVITCACHE_BUILD_TESTS=ON \
    -DCMAKE_BUILD_TYPE=Debug -DCMAKE_COMPILE_WARNING_AS_ERROR=ON -DCMAKE_CXX_FLAGS="-fsanitize=$1 -fno-sanitize-recover=all" &&
    .venv/bin/cmake --build "$build"
}

# Of the fuzzer, the log has the seed and the numbers of inputs.
native_tests() {
  native_build "$1" && .venv/bin/ctest --test-dir "$build" --output-on-failure --no-tests=error || return
  [[ $1 != address* ]] || sed -n '/fuzz: [0-9]/,/inputs$/p' "$build/Testing/Temporary/LastTest.log"
}

# random_calls SECONDS [MODULES]: calls of the package from Python, under AddressSanitizer's allocator. The sanitizer sees
# each copy of the C library, and, in a module that is built with it, every access.
random_calls() {
  local compiler=${CXX:-c++}
  ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so.6)" \
    PYTHONPATH=${2:-} "$python" tests/support/fuzz_calls.py "$1"
}

fuzz() {
  native_build address,undefined && VITCACHE_FUZZ_SECONDS=$1 "$build/tests/native/fuzz"
}

# module_calls SECONDS: `random_calls` of a native module with the sanitizers, in a copy of the package.
module_calls() {
  local build=build/native-module-address
  .venv/bin/cmake -S . -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DVITCACHE_BUILD_MODULE=ON \
    -DVITCACHE_STAND_IN_FAULTS=ON -DPython_EXECUTABLE="$PWD/$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_BUILD_TYPE=Debug \
    -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all" &&
    .venv/bin/cmake --build "$build" && mkdir -p "$build/package" && rm -rf "$build/package/vitcache" &&
    cp -RL vitcache "$build/package" && cp "$build"/_native*.so "$build/package/vitcache" &&
    random_calls "$1" "$PWD/$build/package"
}

target=${1:?run.sh: expected test, oldest or soak}
shift
case $target in
  test)
    results=build/families-newest.jsonl
    rm -f "$results"
    # `make test` has installed the wheels. Without these variables, pytest skips their tests if they are missing.
    export VITCACHE_REQUIRE_CUDART=1 VITCACHE_REQUIRE_SCHEMAS=1
    part "tests and docstring examples" env VITCACHE_FAMILY_RESULTS="$results" "${pytest[@]}"
    part "table of models" "$python" tests/models_table.py --check "$results"
    # The module declares operations of torchvision, which PyPI builds for CUDA.
    part "rows of images with $1" env PYTHONPATH="$PWD/requirements/engines:$PWD/.overlays/$1" \
      "${pytest[@]}" --dist load -p torchvision_operations tests/adapters/test_row_counts.py
    part "native tests, address and undefined" native_tests address,undefined
    part "native tests, thread" native_tests thread
    part "random calls" random_calls 10
    part "GPU tests and benches, dry" env DRY=1 PYTHON= ONLY= RESULTS= BUDGET= RESUME= bash tests/gpu/run.sh
    ;;
  oldest)
    results=build/families-oldest.jsonl
    rm -f "$results"
    for overlay in "$@"; do
      part "tests with $overlay" env PYTHONPATH="$PWD/.overlays/$overlay" VITCACHE_FAMILY_RESULTS="$results" \
        "${pytest[@]}" -m "${overlay%%-*}"
    done
    part "table of models" "$python" tests/models_table.py --check "$results"
    target=test-oldest
    ;;
  newest)
    part "tests with $1" env PYTHONPATH="$PWD/.overlays/$1" "${pytest[@]}" -m transformers
    target=test-newest
    ;;
  torch)
    part "tests with $1" env PYTHONPATH="$PWD/.overlays/$1" "${pytest[@]}" -m "not triton" "${@:2}"
    target=test-torch
    ;;
  models)
    results=build/families.jsonl
    rm -f "$results"
    families=(tests/adapters/test_zoo.py tests/adapters/test_refused.py)
    families+=(tests/adapters/test_prefill_families.py::test_prefill_of_images_and_videos_gives_the_stock_logits)
    part "newest versions" env VITCACHE_FAMILY_RESULTS="$results" "${pytest[@]}" "${families[@]}"
    for overlay in "$@"; do
      part "$overlay" env PYTHONPATH="$PWD/.overlays/$overlay" VITCACHE_FAMILY_RESULTS="$results" \
        "${pytest[@]}" "${families[@]}"
    done
    ((failed)) || part "docs/models.md" "$python" tests/models_table.py "$results"
    ;;
  fuzz)
    part "fuzz, $1 s" fuzz "$1"
    part "random calls of a module with sanitizers" module_calls "$(($1 / 5))"
    ;;
  # A few files have all soak tests, so tests, not files, are distributed to the processes.
  soak) part "soak" "${pytest[@]}" --dist load -m soak ;;
  *)
    echo "run.sh: expected test, oldest, newest, torch, models, soak or fuzz, got $target" >&2
    exit 2
    ;;
esac

printf '\nmake %s\n' "$target"
printf '%s\n' "${summary[@]}" | sed '/^$/d; s/^/  /'
exit $failed
