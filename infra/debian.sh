# Sourced by the other scripts: programs that no Python or npm package brings along.

# Install from Debian what is missing.
#
#     need PROGRAM=PACKAGE...
need() {
    missing=
    for each in "$@"; do
        command -v "${each%%=*}" >/dev/null || missing="$missing ${each#*=}"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        fail "these are needed; install them:$missing"
    elif [ "$(id -u)" = 0 ]; then
        sudo=
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo=sudo
    else
        fail "this user cannot install what is needed; run: apt-get install$missing"
    fi
    $sudo apt-get update -qq
    # shellcheck disable=SC2086 # The names are words of their own.
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
}

fail() {
    echo "setup: $1" >&2
    exit 1
}
