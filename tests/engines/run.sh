#!/usr/bin/env bash
# Runs the tests with real engines in .venv-vllm, with options of pytest. `make engines` calls it.
# tests/engines/full.log is the log of the last run of all engines that passed.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONSAFEPATH=1 VLLM_TARGET_DEVICE=cpu
options=(-c tests/engines/pytest.ini tests/engines -v --capture=no --durations=5)
.venv-vllm/bin/python -m pytest "${options[@]}" "$@"
# With other options, only a part of the tests ran.
[[ $* != --full ]] || cp build/engines/full.log tests/engines/full.log
