#!/usr/bin/env bash
# Makes .venv-vllm: vLLM with operations for the CPU. If the machine cannot run them, says so in one line.
# `make engines` runs it after `make setup`, whose interpreter both virtual environments have: the native module is
# compiled once.
set -eu
cd "$(dirname "$0")/../.."
here=requirements/vllm
venv=.venv-vllm
. requirements/engines/venv.sh

[[ $(uname -sm) == "Linux x86_64" ]] ||
  fail "vLLM's operations for the CPU are built for Linux x86_64, this machine is $(uname -sm)"
require_python "3, 11" "3, 15" "vLLM 0.33.0 needs Python 3.11 to 3.14"
grep -qw avx2 /proc/cpuinfo || fail "vLLM's operations need a CPU with AVX2, this one has none"
require_library libnuma.so.1 libnuma1 "the CPU build of vLLM"
require_library libibverbs.so.1 libibverbs1 "the client of Mooncake"
require_disk
new_venv
install --no-deps -r $here/dependencies.txt
install --no-deps --require-hashes -r $here/operations.txt
install --no-deps --require-hashes -r $here/released.txt
in_every_process requirements/engines/torchvision_operations.py
