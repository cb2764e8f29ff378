#!/usr/bin/env bash
# Makes .venv-sglang: SGLang, whose operations are for CUDA, so that it runs on a CPU. If the machine cannot run it, says so
# in one line. `make engines` runs it after `make setup`, whose interpreter both virtual environments have.
set -eu
cd "$(dirname "$0")/../.."
here=requirements/sglang
venv=.venv-sglang
. requirements/engines/venv.sh

[[ $(uname -sm) == "Linux x86_64" ]] || fail "SGLang's wheels are built for Linux x86_64, this machine is $(uname -sm)"
require_python "3, 11" "3, 14" "SGLang 0.5.23 has wheels for Python 3.11 to 3.13"
require_library libibverbs.so.1 libibverbs1 "the client of Mooncake"
require_disk
new_venv
install --no-deps -r $here/dependencies.txt
install --no-deps --require-hashes -r $here/released.txt
in_every_process requirements/engines/torchvision_operations.py
in_every_process $here/vllm_operations.py

# The digits that the bench `sglang_chat` shows to a model. .venv has them in scikit-learn, which stays out of this
# environment: transformers would import it in each process of an engine.
digits=$(.venv/bin/python -c 'from importlib.util import find_spec; print(find_spec("sklearn").submodule_search_locations[0])')
mkdir -p $venv/share/vitcache
cp "$digits/datasets/data/digits.csv.gz" $venv/share/vitcache
