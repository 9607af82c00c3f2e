#!/usr/bin/env bash
# Line coverage of the NCCL communicator (`src/comm/nccl*`, `src/cuda/*`, `src/world/device.rs`) by the tests on the
# CUDA double, including ranks that are killed. Run by hand: it rebuilds the program with coverage counters.
#
# Needs llvm-profdata and llvm-cov of the major version of rustc's LLVM (rustc -vV): `rustup component add llvm-tools`,
# Debian's package llvm-NN, or LLVM=/folder/with/both. Arguments are passed to the test program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -e native/stamp ]; then
    # shellcheck source=launch/env.sh
    . launch/env.sh
fi

major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
host=$(rustc -vV | sed -n 's/^host: //p')
for folder in "${LLVM:-}" "$(rustc --print sysroot)/lib/rustlib/$host/bin" "/usr/lib/llvm-$major/bin"; do
    if [ -x "$folder/llvm-profdata" ] && [ -x "$folder/llvm-cov" ]; then
        llvm=$folder
        break
    fi
done
[ -n "${llvm:-}" ] || {
    echo "coverage.sh: llvm-profdata and llvm-cov of LLVM $major not found; see the top of this script" >&2
    exit 1
}

out=${CARGO_TARGET_DIR:-$PWD/target}/coverage
mkdir -p "$out"
rm -rf "$out/counts"
# Instruments only this package. The counters live in a mapped file, so that a killed rank does not lose them. Bash,
# since sh may drop environment variables with a dash in their name.
cat >"$out/rustc" <<'WRAPPER'
#!/usr/bin/env bash
exec "$@" -C instrument-coverage -C llvm-args=-runtime-counter-relocation
WRAPPER
chmod +x "$out/rustc"
export RUSTC_WORKSPACE_WRAPPER=$out/rustc LLVM_PROFILE_FILE="$out/counts/%p-%m%c.profraw"
arguments=(test --release --locked --target-dir "$out" --config 'profile.release.package.drnas-dist.opt-level=0' --test cards)
program=$(cargo "${arguments[@]}" --no-run --message-format=json-render-diagnostics | sed -n 's/.*"executable":"\([^"]*cards-[^"]*\)".*/\1/p')
cargo "${arguments[@]}" -- "$@"

"$llvm/llvm-profdata" merge --sparse "$out"/counts/*.profraw -o "$out/all.profdata"
files=(src/comm/nccl/mod.rs src/comm/nccl/options.rs src/comm/nccl/library.rs src/comm/nccl/watch.rs src/comm/nccl/clock.rs src/cuda/driver.rs src/cuda/library.rs
    src/cuda/stream.rs src/world/device.rs)
echo "file, lines covered, lines, percent"
"$llvm/llvm-cov" export --summary-only --instr-profile "$out/all.profdata" "$program" "${files[@]}" |
    python3 -c 'import json, sys
for file in json.load(sys.stdin)["data"][0]["files"]:
    lines = file["summary"]["lines"]
    print("%-32s %4d %4d %6.1f %%" % (file["filename"].split("/src/")[-1], lines["covered"], lines["count"], lines["percent"]))'
echo "lines not covered:"
"$llvm/llvm-cov" show --instr-profile "$out/all.profdata" --show-line-counts-or-regions=0 "$program" "${files[@]}" |
    awk '/^\/.*\.rs:$/ { file = $0; sub(".*/src/", "src/", file) }
         /^ *[0-9]+\| *0\|/ { split($0, part, "|"); line = $0; sub(/^ *[0-9]+\| *0\|/, "", line); printf "%s %d: %s\n", file, part[1], line }'
