#!/usr/bin/env bash
# Runs Python with Pillow: tests/python/pillow.sh SCRIPT ARGUMENTS.
#
# Uses DRNAS_PYTHON, a Python with Pillow, if set; otherwise the Python of native/, for which it installs Pillow (22 MB)
# once into target/python-pillow.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ -z "${DRNAS_PYTHON:-}" ] || exec "$DRNAS_PYTHON" "$@"
python=${DRNAS_NATIVE:-$root/native}/bin/python
[ -x "$python" ] || { echo "pillow.sh: $python not found; run launch/setup.sh" >&2; exit 1; }
home=$root/target/python-pillow

if [ ! -e "$home/done" ]; then
    # Concurrent tests each install a copy; the first one is kept.
    work=$home.$$
    trap 'rm -rf "$work"' EXIT
    "$python" -m pip install --quiet --no-deps --only-binary=:all: --disable-pip-version-check --no-input \
        --retries 2 --timeout 30 --target "$work" pillow==12.0.0
    touch "$work/done"
    mv -T "$work" "$home" 2>/dev/null || [ -e "$home/done" ]
    # Removes the copy if it was not the first: `exec` skips the trap.
    rm -rf "$work"
fi
export PYTHONPATH=$home PYTHONDONTWRITEBYTECODE=1
exec "$python" "$@"
