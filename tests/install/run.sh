#!/usr/bin/env bash
# Installs vitcache as a user does, from an sdist and from a wheel, each into a virtual environment of its own that
# has nothing but pip, and uses it in an empty folder. `make install-test` calls it.
#
# PYTHON chooses the interpreter. torch is the release in requirements/dev.txt: if PIP_EXTRA_INDEX_URL or the
# configuration of pip names an index of builds for the CPU, a build for the CPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
here=$root/tests/install
folder=$root/build/install-test
python=${PYTHON:-python3}
torch=$(grep '^torch==' requirements/dev.txt)
export PIP_DISABLE_PIP_VERSION_CHECK=1

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "make install-test: vitcache needs Python 3.11 or newer, $python is $("$python" -V 2>&1): set PYTHON" >&2
  exit 1
}

summary=()
# step NAME COMMAND...: runs the command; ends the run if it fails.
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n%s\n' "$name"
  "$@" || {
    echo "make install-test: $name failed" >&2
    exit 1
  }
  summary+=("$(printf '%-44s %4d s' "$name" $((SECONDS - start)))")
}

make_tools() {
  "$python" -m venv "$folder/tools" && "$folder/tools/bin/python" -m pip install -q build twine
}

build_both() {
  # From the folder of the sources, `python -m build` makes the sdist, and then the wheel from the sdist.
  "$folder/tools/bin/python" -m build --outdir "$folder/dist" "$root" >"$folder/build.log" 2>&1 ||
    { tail -n 40 "$folder/build.log"; return 1; }
  ls -l "$folder/dist"
}

install() { # install NAME ARCHIVE
  "$python" -m venv "$folder/$1" &&
    "$folder/$1/bin/python" -m pip install -q --no-compile "$torch" "$2[demo]" &&
    du -sh "$folder/$1"
}

use() { # use NAME
  rm -rf "$folder/empty" && mkdir "$folder/empty" && (
    cd "$folder/empty"
    env -u PYTHONPATH OMP_NUM_THREADS=1 "$folder/$1/bin/python" -P "$here/use.py" "$version"
  )
}

own_tests() {
  tar -xzf "$folder"/dist/*.tar.gz -C "$folder" &&
    "$folder/sdist/bin/python" -m pip install -q --no-compile -c requirements/constraints.txt \
      $(grep -E '^(pytest|pytest-timeout|hypothesis)==' requirements/dev.txt) &&
    (cd "$folder"/vitcache-*/ && PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 \
      "$folder/sdist/bin/python" -m pytest -q tests/keys tests/pages)
}

rm -rf "$folder" && mkdir -p "$folder"
step "tools to build and check" make_tools
step "sdist, and a wheel from the sdist" build_both
step "metadata" "$folder/tools/bin/python" -m twine check --strict "$folder"/dist/*
version=$(basename "$folder"/dist/*.tar.gz .tar.gz)
version=${version#vitcache-}
step "pip install the wheel, with torch" install wheel "$(echo "$folder"/dist/*.whl)"
step "use the wheel" use wheel
rm -rf "$folder/wheel"
step "pip install the sdist, with torch" install sdist "$(echo "$folder"/dist/*.tar.gz)"
step "use the sdist" use sdist
step "tests of the sdist" own_tests
rm -rf "$folder"

printf '\nmake install-test\n'
printf '  %s\n' "${summary[@]}"
