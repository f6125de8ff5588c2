#!/usr/bin/env bash
# Sets up what is missing (libraries, models, a real livekit-server), then style, types and every test.
# Arguments go to pytest: scripts/test.sh tests/host -k turn
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh --dev
scripts/check.sh
.venv/bin/host models download
scripts/install_livekit_server.sh >/dev/null
exec .venv/bin/python -m pytest "$@"
