#!/usr/bin/env bash
# Style and types. `scripts/check.sh --fix` formats and repairs what can be repaired.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = "--fix" ]; then
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .
else
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
fi
.venv/bin/mypy
