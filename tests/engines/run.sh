#!/usr/bin/env bash
# run.sh ENGINES [--full] [OPTIONS...]: runs the tests with real engines, those of each engine in its environment, with
# options of pytest. `make engines` calls it with "vllm sglang", "vllm" or "sglang".
# tests/engines/full.log and tests/engines/sglang/full.log are the logs of the last full runs that passed.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONSAFEPATH=1
engines=$1
shift
full=()
if [[ ${1:-} == --full ]]; then
  full=(--full)
  shift
fi

vllm() {
  VLLM_TARGET_DEVICE=cpu .venv-vllm/bin/python -m pytest -c tests/engines/pytest.ini tests/engines \
    -v --capture=no --durations=5 "${full[@]}" "$@" || return
  keep_log build/engines/full.log tests/engines/full.log "$@"
}

sglang() {
  .venv-sglang/bin/python -m pytest -c tests/engines/sglang/pytest.ini tests/engines/sglang \
    -v --capture=no --durations=5 "${full[@]}" "$@" || return
  keep_log build/engines-sglang/full.log tests/engines/sglang/full.log "$@"
}

# keep_log FROM TO [OPTIONS...]: with further options, only a part of the tests ran.
keep_log() {
  ((${#full[@]} == 0 || $# > 2)) || cp "$1" "$2"
}

# With options that select tests, an engine may have none of them; pytest then ends with code 5.
failed=0
empty=1
for engine in $engines; do
  case $engine in
    vllm | sglang) ;;
    *)
      echo "make engines: expected ENGINE=vllm or ENGINE=sglang, got ENGINE=$engine" >&2
      exit 2
      ;;
  esac
  "$engine" "$@"
  code=$?
  ((code == 5)) || empty=0
  ((code == 0 || code == 5)) || failed=1
done
exit $((failed || empty))
