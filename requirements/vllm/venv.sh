#!/usr/bin/env bash
# Makes .venv-vllm: vLLM with operations for the CPU. If the machine cannot run them, says so in one line.
# `make engines` runs it after `make setup`, whose interpreter both virtual environments have: the native module is
# compiled once.
set -eu
cd "$(dirname "$0")/../.."
here=requirements/vllm
python=.venv-vllm/bin/python

fail() {
  echo "make engines: $*" >&2
  exit 1
}

[[ $(uname -sm) == "Linux x86_64" ]] ||
  fail "vLLM's operations for the CPU are built for Linux x86_64, this machine is $(uname -sm)"
.venv/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
  fail "vLLM 0.33.0 needs Python 3.11 to 3.14, .venv has $(.venv/bin/python -V): make clean, then PYTHON=python3.11"
grep -qw avx2 /proc/cpuinfo || fail "vLLM's operations need a CPU with AVX2, this one has none"
.venv/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
  fail "vLLM's operations need libnuma.so.1: apt-get install libnuma1"
free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
[[ -d .venv-vllm ]] || ((free_kb >= MIN_ENGINES_DISK_GB * 1024 * 1024)) ||
  fail ".venv-vllm needs $MIN_ENGINES_DISK_GB GB of disk space, $PWD has $((free_kb / 1024)) MB free"

# The steps change files of each other, so a changed step needs a new environment.
.venv/bin/python -m venv --clear .venv-vllm
torch=$(grep '^torch==' requirements/dev.txt)
install() {
  echo "make engines: pip install $*"
  "$python" -m pip install -q "$@"
}
install "$torch"
"$python" -c 'import triton' 2>/dev/null || install --no-deps -r requirements/triton.txt
install --no-deps -r $here/dependencies.txt
install --no-deps --require-hashes -r $here/operations.txt
install --no-deps --require-hashes -r $here/released.txt
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp $here/torchvision_operations.py "$site"
echo 'import torchvision_operations' >"$site/torchvision_operations.pth"
