#!/usr/bin/env bash
# Install model weights: scripts/download_models.sh [PROFILE] [--from DIR]
# Mirrors are honoured: pip's own configuration, and HF_ENDPOINT for files from the hub.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

"$root/scripts/setup.sh"
exec "$root/.venv/bin/host" models download "$@"
