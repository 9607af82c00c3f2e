#!/usr/bin/env bash
# Runs Python with Pillow: tests/python/pillow.sh SCRIPT ARGUMENTS.
#
# DRNAS_PYTHON, if set, is a Python that has Pillow. Otherwise it is that of native/, and Pillow (22 MB) goes into
# target/python-pillow, once.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ -z "${DRNAS_PYTHON:-}" ] || exec "$DRNAS_PYTHON" "$@"
python=${DRNAS_NATIVE:-$root/native}/bin/python
[ -x "$python" ] || { echo "pillow.sh: $python is not there; run launch/setup.sh" >&2; exit 1; }
home=$root/target/python-pillow

if [ ! -e "$home/done" ]; then
    # Several tests may come here at once: each installs its own, the first one stays.
    work=$home.$$
    trap 'rm -rf "$work"' EXIT
    "$python" -m pip install --quiet --no-deps --only-binary=:all: --disable-pip-version-check --no-input \
        --retries 2 --timeout 30 --target "$work" pillow==12.0.0
    touch "$work/done"
    mv -T "$work" "$home" 2>/dev/null || [ -e "$home/done" ]
    # The one that came second; `exec` does not come to the trap.
    rm -rf "$work"
fi
export PYTHONPATH=$home PYTHONDONTWRITEBYTECODE=1
exec "$python" "$@"
