#!/usr/bin/env bash
# Makes .venv, unless a working one exists. If a program or package is missing, says so in one line.
# `make setup` runs it.
set -eu
cd "$(dirname "$0")/.."

fail() {
  echo "make setup: $*" >&2
  exit 1
}

suitable() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

version() {
  "$1" -V 2>/dev/null || echo "not installed"
}

choose_python() {
  if [[ -n ${PYTHON:-} ]]; then
    suitable "$PYTHON" || fail "expected Python 3.11 or newer, PYTHON=$PYTHON is $(version "$PYTHON")"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if suitable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "expected Python 3.11 or newer, python3 is $(version python3); choose another with PYTHON=..."
}

${CXX:-g++} --version >/dev/null 2>&1 ||
  fail "the native module needs g++, but '${CXX:-g++}' does not run: apt-get install g++, or set CXX=..."

if ! compgen -G '.venv/lib/python*/site-packages/torch' >/dev/null; then
  free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
  ((free_kb >= MIN_DISK_GB * 1024 * 1024)) ||
    fail ".venv needs $MIN_DISK_GB GB of disk space, $PWD has $((free_kb / 1024)) MB free"
fi

if ! { suitable .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
  python=$(choose_python)
  echo "making .venv with $("$python" -V) ($(command -v "$python"))"
  "$python" -m venv --clear .venv >/dev/null 2>&1 ||
    fail "$python cannot make a virtual environment: apt-get install python3-venv, or set PYTHON=..."
fi
