#!/bin/sh
# Set headrace up on a bare Debian machine with Python >= 3.11 and pip: a virtual environment in .venv, and what it needs of
# Debian's packages. Usage: tools/set_up.sh run|dev   (dev adds what the tests need)
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
kind=${1:-run}

say() { printf '%s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { say "headrace needs Python >= 3.11, $python is $("$python" -V 2>&1); set PYTHON=/path/to/python3.11"; exit 1; }

# --- Debian's packages: the persistent-memory library, and for the tests a browser and a database server
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif sudo -n true 2>/dev/null; then sudo "$@"; else return 1; fi
}
install_debian() { # PACKAGES... ; false when they cannot be had
    command -v apt-get >/dev/null || return 1
    say "installing from Debian's packages: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
        { as_root apt-get update -qq >/dev/null 2>&1 &&
          as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
}
has_fuzzer() {
    for clang in clang clang-19 clang-16 clang-14; do
        command -v $clang >/dev/null &&
            echo 'int LLVMFuzzerTestOneInput(const char *at, unsigned long size) { return at != 0 && size > 1 ? 0 : 0; }' |
            $clang -fsanitize=fuzzer,address -x c -o /dev/null - 2>/dev/null && return 0
    done
    return 1
}
has_library() { "$python" -c "import ctypes; ctypes.CDLL('$1')" 2>/dev/null; }

programs() {
    has_library libpmemobj.so.1 || install_debian libpmemobj1 ||
        say "libpmemobj1 cannot be installed here (neither root nor sudo without a password, or no apt-get): the queue will use a plain" \
            "file. To have it: apt-get install libpmemobj1"
    [ "$kind" = dev ] || return 0
    command -v chromium >/dev/null && command -v chromedriver >/dev/null || install_debian chromium chromium-driver ||
        say "chromium cannot be installed here: the browser tests will be skipped"
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || install_debian postgresql ||
        say "postgresql cannot be installed here: its tests will be skipped"
    command -v ip >/dev/null || install_debian iproute2 ||
        say "iproute2 cannot be installed here: the tests with network namespaces will be skipped"
}
compiler() { # for fuzzing the C parser guided by coverage: 12 s and 90 MB
    has_fuzzer || { [ "$(. /etc/os-release 2>/dev/null; echo "${VERSION_ID:-}")" = 12 ] && install_debian clang-14 libclang-rt-14-dev; } ||
        install_debian clang libclang-rt-dev ||
        say "clang with libFuzzer cannot be installed here: the C parser is fuzzed with random streams, by gcc"
}
programs & # beside pip; the compiler, which pip may be using, is let alone until it has ended
programs=$!

# --- the virtual environment
if [ ! -x .venv/bin/python ]; then
    say "creating .venv"
    # Debian's python3 may lack ensurepip (package python3-venv): then the pip at hand fills the environment
    "$python" -m venv .venv >/dev/null 2>&1 || { rm -rf .venv && "$python" -m venv --without-pip .venv; }
fi
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m pip --python .venv/bin/python install -q -c constraints.txt pip
pip=".venv/bin/python -m pip"
say "installing Python packages into .venv (kind: $kind)"
# cffi: headrace compiles its JSON reader, and ingest_ws its frame parser, while they are installed
$pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel cffi
host=.
[ "$kind" = dev ] && host='.[dev]'
set -- -e "$host"
for plugin in plugins/*/; do set -- "$@" -e "$plugin"; done
$pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt "$@"
wait "$programs"
[ "$kind" = run ] || compiler
touch ".venv/.set-up-$kind"
