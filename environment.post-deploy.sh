#!/usr/bin/env bash
# Packages of the lock file, without dependencies (the lock is complete), then the project itself.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python -m pip install --no-deps -r "$here/requirements.lock"
python -m pip install --no-deps --editable "$here"
