#!/usr/bin/env bash
# Every test, and those marked `package` again with each other version of it that .overlays has: run.sh package-1.2...
# `make test` calls it after its set-up.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONSAFEPATH=1
python=.venv/bin/python
# One process per core with one thread each; a file stays in one process, whose fixtures are then made once.
export OMP_NUM_THREADS=1
pytest=("$python" -m pytest -n auto --maxprocesses 8 --dist loadfile)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT

summary=()
failed=0

# part NAME COMMAND...: run it, and keep its last line that counts tests.
part() {
  local name=$1 start=$SECONDS
  shift
  printf '\n%s\n' "$name"
  "$@" 2>&1 | tee "$log"
  local code=${PIPESTATUS[0]} counts
  counts=$(grep -E '[0-9]+ (passed|failed|error|skipped|deselected)|tests passed|no tests' "$log" | tail -n1)
  ((code == 0)) || { failed=1; name+=" FAILED ($code)"; }
  summary+=("$(printf '%-36s %4d s  %s' "$name" $((SECONDS - start)) "$(tr -d = <<<"$counts")")")
}

# native_tests SANITIZERS: they are in the tests' own build, as an executable needs no help to load them. CMake keeps
# the compiler that a folder began with.
native_tests() {
  local compiler=${CXX:-c++}
  local build=build/native-tests-${1%%,*}-${compiler//[^[:alnum:]+.-]/-}
  .venv/bin/cmake -S . -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DVITCACHE_BUILD_TESTS=ON \
    -DCMAKE_BUILD_TYPE=Debug -DCMAKE_COMPILE_WARNING_AS_ERROR=ON -DCMAKE_CXX_FLAGS="-fsanitize=$1" &&
    .venv/bin/cmake --build "$build" &&
    .venv/bin/ctest --test-dir "$build" --output-on-failure --no-tests=error
}

part "tests" "${pytest[@]}"
for overlay in "$@"; do
  part "tests of $overlay" env PYTHONPATH=".overlays/$overlay" "${pytest[@]}" -m "${overlay%%-*}"
done
part "native tests, address and undefined" native_tests address,undefined
part "native tests, thread" native_tests thread
part "GPU tests and benches, dry" env DRY=1 PYTHON= ONLY= RESULTS= bash tests/gpu/run.sh

printf '\nmake test\n'
printf '  %s\n' "${summary[@]}"
exit $failed
