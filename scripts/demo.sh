#!/usr/bin/env bash
# A recorded caller talks with the agent on this machine: real models, real processes, no server, no cloud.
#   scripts/demo.sh [WAVE ...]      default: two recorded questions
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
.venv/bin/host models download
mkdir -p out
if [ "$#" -eq 0 ]; then
    set -- tests/data/speech/whats-the-date-today.wav tests/data/speech/set-a-timer.wav
fi
exec .venv/bin/host talk "$@" --out out/reply.wav --record out/conversation.wav
