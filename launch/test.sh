#!/usr/bin/env bash
# Installs the native parts if need be, then runs every test. Arguments go to cargo test, for example:
#   ./launch/test.sh --test config
# Tests on real images need the packs in ../shared/data (or DRNAS_SHARED=...); without them they say that they skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup.sh
# shellcheck source=launch/env.sh
. launch/env.sh
cargo test --release --locked "$@"
