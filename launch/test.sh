#!/usr/bin/env bash
# Installs the native libraries if they are missing, then runs all tests. Arguments go to cargo test, for example:
#   ./launch/test.sh --test config
# Tests on real images need the data in ../shared/data (or DRNAS_SHARED=...); without it they print that they are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh
# shellcheck source=launch/env.sh
. launch/env.sh
cargo test --release --locked "$@"
