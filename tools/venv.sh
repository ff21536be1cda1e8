#!/bin/sh
# Makes the virtual environment $VENV with torch $TORCH and requirements-dev.txt.
#
# Does nothing when its stamp says that it is ready, so it needs no network then. A stamp is
# written last; what was interrupted before it is thrown away and made again.
# Environment: VENV, TORCH, TORCH_INDEX (may be empty), PYTHON (may be empty).
set -eu

fail() {
    echo "gnnoffload: $*" >&2
    exit 1
}

supported='import sys, sysconfig
sys.exit(sys.version_info < (3, 11) or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))'

find_python() {
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$name" -c "$supported" 2>/dev/null; then
            command -v "$name"
            return
        elif [ "$name" = "${PYTHON:-}" ]; then
            fail "PYTHON=$PYTHON is not a Python 3.11 or newer (free-threaded builds are not supported)"
        fi
    done
    fail "no Python 3.11 or newer found: sudo apt install python3.11 python3.11-venv" \
        "python3.11-dev build-essential"
}

# Names all missing packages at once, in one line.
check_packages() {
    missing='' packages=''
    # Debian's python3-dev belongs to /usr/bin/python3, python3.12-dev to python3.12.
    name=$("$1" -c 'import os, sys
default = os.path.realpath("/usr/bin/python3") == os.path.realpath(sys.executable)
print("python3" if default else "python3.%d" % sys.version_info[1])')
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        missing="venv, " packages="$name-venv"
    fi
    if ! "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
        missing="${missing}Python.h, " packages="$packages $name-dev"
    fi
    if ! echo '#include <stdio.h>' | ${CC:-cc} -E - >/dev/null 2>&1; then
        missing="${missing}a C compiler, " packages="$packages build-essential"
    fi
    [ -z "$missing" ] || fail "missing: ${missing%, }. Run: sudo apt install ${packages# }"
}

python=$(find_python)
mkdir -p build
exec 9>build/venv.lock
flock 9 # a second make waits for the first
stamp="$VENV/.gnnoffload-ready"
unfinished="$VENV/.gnnoffload-unfinished"
wanted="torch $TORCH
index ${TORCH_INDEX:-default}
python $python $("$python" -c 'import platform; print(platform.python_version())')
in $PWD
$(cat requirements-dev.txt)"

if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
check_packages "$python"
if [ -e "$unfinished" ]; then
    echo "gnnoffload: $VENV was left unfinished; making it again"
    find "$VENV" -mindepth 1 -maxdepth 1 ! -path "$unfinished" -exec rm -rf {} +
elif [ -n "$(ls -A "$VENV" 2>/dev/null)" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
    fail "VENV=$VENV exists and is not a virtual environment"
fi
if [ ! -e "$VENV/pyvenv.cfg" ] || [ -e "$stamp" ]; then # ours: may be made again
    mkdir -p "$VENV"
    : >"$unfinished"
    rm -f "$stamp"
fi
if [ ! -e "$VENV/pyvenv.cfg" ]; then
    echo "  VENV $VENV ($python)"
    "$python" -m venv "$VENV"
fi

quiet=--quiet
[ ! -t 1 ] || quiet='' # a person sees the progress of the download
pip() {
    "$VENV/bin/python" -m pip install $quiet --disable-pip-version-check --no-input "$@"
}
echo "  PIP  torch $TORCH (a large download the first time)"
pip ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH"
echo "  PIP  requirements-dev.txt"
pip -r requirements-dev.txt
echo "  PIP  gnnoffload (editable)"
pip --no-build-isolation --no-deps --editable .
rm -f "$unfinished"
printf '%s\n' "$wanted" >"$stamp"
