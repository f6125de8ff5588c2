#!/usr/bin/env bash
# Makes .venv and installs Roomful into it. Quick when nothing has changed since the last time.
#   scripts/setup.sh          what running needs
#   scripts/setup.sh --dev    and what the checks and tests need
set -euo pipefail
cd "$(dirname "$0")/.."

extras=""
[ "${1:-}" = "--dev" ] && extras="[dev]"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.12 python3.11 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; none was found (set PYTHON to its path)"
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv || { rm -rf .venv; die "could not make .venv; on Debian and Ubuntu: apt install python3-venv"; }
fi

# The stamp holds what was installed from; a changed pyproject.toml (or other extras) installs again.
wanted="$(sha256sum pyproject.toml | cut -d' ' -f1) ${extras:-none}"
stamp=.venv/.roomful-installed
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] || { [ -z "$extras" ] && [ "$(cat "$stamp" 2>/dev/null)" = "${wanted% *} [dev]" ]; }; then
    exit 0
fi

# llama-cpp-python is compiled for this machine's processor.
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
    || die "a C++ compiler is needed to build llama.cpp; on Debian and Ubuntu: apt install g++"

say "installing Roomful and its libraries (the first time this takes 5 to 15 minutes: llama.cpp is compiled)"
.venv/bin/python -m pip install --disable-pip-version-check --editable ".$extras"
printf '%s' "$wanted" > "$stamp"
