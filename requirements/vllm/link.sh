#!/usr/bin/env bash
# Makes vitcache visible in .venv-vllm: copies the files of the editable install that `make setup` made in .venv, so the
# native module is not compiled twice. Both environments have the same interpreter.
set -eu
cd "$(dirname "$0")/../.."
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
from=$(.venv/bin/python -c "$packages")
to=$(.venv-vllm/bin/python -c "$packages")
rm -rf "$to"/vitcache-*.dist-info "$to"/__editable__*vitcache*
cp -r "$from"/vitcache-*.dist-info "$from"/__editable__*vitcache* "$to"
(cd / && "$OLDPWD/.venv-vllm/bin/python" -c 'import vitcache, vitcache._native')
