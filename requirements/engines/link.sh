#!/usr/bin/env bash
# link.sh VENV: makes vitcache visible in the virtual environment of an engine. Copies the files of the editable install
# that `make setup` made in .venv, so the native module is not compiled twice. Both have the same interpreter.
set -eu
cd "$(dirname "$0")/../.."
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
from=$(.venv/bin/python -c "$packages")
to=$("$1/bin/python" -c "$packages")
rm -rf "$to"/vitcache-*.dist-info "$to"/__editable__*vitcache*
cp -r "$from"/vitcache-*.dist-info "$from"/__editable__*vitcache* "$to"
(cd / && "$OLDPWD/$1/bin/python" -c 'import vitcache, vitcache._native')
