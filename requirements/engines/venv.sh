# Functions that make the virtual environment of an engine, with the interpreter of .venv: the native module is compiled
# once. The script that reads this file has set `venv` to the name of the folder.
python=$venv/bin/python

fail() {
  echo "make engines: $*" >&2
  exit 1
}

# require_python FIRST AFTER PACKAGE: the package has wheels from the version FIRST up to the version before AFTER.
require_python() {
  .venv/bin/python -c "import sys; sys.exit(not ($1) <= sys.version_info < ($2))" ||
    fail "$3, .venv has $(.venv/bin/python -V): make clean, then PYTHON=python3.11"
}

# require_library FILE PACKAGE USER: a library that pip does not install, and the package of Debian that has it.
require_library() {
  .venv/bin/python -c "import ctypes; ctypes.CDLL('$1')" 2>/dev/null || fail "$3 needs $1: apt-get install $2"
}

# MIN_ENGINES_DISK_GB is the disk space of all environments. One that exists has its part already.
require_disk() {
  local free_mb taken_mb
  free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
  taken_mb=$(du -csm .venv-vllm .venv-sglang 2>/dev/null | awk 'END {print $1}')
  [[ -d $venv ]] || ((free_mb + taken_mb >= MIN_ENGINES_DISK_GB * 1024)) ||
    fail "$venv needs $MIN_ENGINES_DISK_GB GB of disk space, $PWD has $free_mb MB free"
}

install() {
  echo "make engines: pip install $*"
  "$python" -m pip install -q "$@"
}

# The steps change files of each other, so a changed step needs a new environment.
new_venv() {
  .venv/bin/python -m venv --clear "$venv"
  install "$(grep '^torch==' requirements/dev.txt)"
  "$python" -c 'import triton' 2>/dev/null || install --no-deps -r requirements/triton.txt
}

# in_every_process FILE: each process of the environment imports a copy of this module before its program.
in_every_process() {
  local site name
  site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  name=$(basename "$1" .py)
  cp "$1" "$site"
  echo "import $name" >"$site/$name.pth"
}
