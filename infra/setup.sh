#!/bin/sh
# Make a virtual environment, and install into it what the rest of the command line names.
#
#     infra/setup.sh FOLDER [pip's arguments...]
#
# PYTHON names the interpreter; without it, the first one that is recent enough.
set -eu
. "$(dirname "$0")/debian.sh"

folder=$1
shift

recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; name one with PYTHON=..."
}

# The sandbox of the agents is bubblewrap's; git-lfs is for workflows that ask for it.
need git=git bwrap=bubblewrap git-lfs=git-lfs
python=$(find_python)
rm -f "$folder/installed"
"$python" -m venv "$folder" ||
    fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"

# uv takes seconds where pip takes minutes; pip knows more ways to be configured. Byte code is made
# now, as pip does: Airflow starts many processes, each of which would take seconds to compile.
if "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv &&
    "$folder/bin/uv" pip install --compile-bytecode --python "$folder/bin/python" "$@"; then
    :
else
    echo "setup: uv did not get there; pip is tried instead" >&2
    "$folder/bin/python" -m pip install --disable-pip-version-check "$@"
fi
touch "$folder/installed"
