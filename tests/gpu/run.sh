#!/usr/bin/env bash
# Runs the GPU tests and the benches, part by part, in order of their worth. `make gpu` calls it.
#
#   RESULTS=dir       folder of results.jsonl, gpu.log and the test reports; default results, or results/dry
#   ONLY="part ..."   only these parts: probe, tests, sanitize, or names of benches. The part engines also runs the
#                     tests with real engines of vLLM; without a vLLM for CUDA it is skipped, which the summary counts
#   BUDGET=seconds    end after this time, with the results so far and the command that continues
#   RESUME=dir        continue from the results in this folder; finished parts, cases and tests do not run again
#   DRY=1             smoke sizes on the CPU
#   PYTHON=python3    the interpreter; with DRY=1 the default is .venv/bin/python if it exists
#   COMMIT=name       the commit to record, where the sources are not in a git repository
#
# The machine's Python is not changed: the package is installed into build/gpu, which is first in PYTHONPATH.
# tests/support/gpu_runner runs the parts. It needs only the standard library.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONSAFEPATH=1

python=${PYTHON:-python3}
[[ ${DRY:-0} == 0 || -n ${PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
command -v "$python" >/dev/null || {
  echo "make gpu: $python was not found: set PYTHON to an interpreter" >&2
  exit 1
}
"$python" -c 'import sys; sys.version_info >= (3, 11) or sys.exit(
    f"make gpu: vitcache needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}")' || exit 1
export VITCACHE_PYTHONPATH=${PYTHONPATH-}  # of the caller: the parts of the run get it
PYTHONPATH="$PWD/tests/support" exec "$python" -m gpu_runner "$python"
