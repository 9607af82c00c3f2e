#!/usr/bin/env bash
# From a fresh clone to a found architecture: installs the native libraries, builds, generates demo images, packs them,
# searches on two MPI ranks. Completed steps are skipped; an interrupted search resumes.
#
#   ./launch/quickstart.sh                              demo images
#   DATA=/path/to/imagefolder ./launch/quickstart.sh    your images: DATA/<class>/<image>.jpg
#   RUN=runs/second ./launch/quickstart.sh --set seed=1   another run; arguments go to search-imagenet
#
#   RANKS=2               MPI ranks (1 or 2 with the default configuration)
#   CONFIG=configs/...    another configuration
#   SKIP_BAD=1            skip images that cannot be decoded
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RANKS=${RANKS:-2}
config=${CONFIG:-configs/quickstart.toml}
say() { printf '\n== %s\n' "$*"; }
die() {
    printf 'quickstart: %s\n' "$*" >&2
    exit 1
}

if [ -n "${DATA:-}" ]; then
    images=$(cd "$caller" && cd "$DATA" 2>/dev/null && pwd) || die "DATA=$DATA is not a folder"
    name=$(basename "$images")-$(cksum <<<"$images" | cut -d' ' -f1)
    # The ImageNet layout has train/ and val/ at the top.
    [ ! -d "$images/train" ] || images=$images/train
    classes=$(find -L "$images" -mindepth 1 -maxdepth 1 -type d | wc -l)
    [ "$classes" -ge 2 ] || die "$images: expected DATA/<class>/<image>.jpg with at least 2 class folders, found $classes"
    work=demo/$name
    run=${RUN:-runs/quickstart-$name}
else
    images=demo/images
    work=demo
    run=${RUN:-runs/quickstart}
fi

say "1/5 install native libraries"
launch/setup.sh
# shellcheck source=launch/env.sh
. launch/env.sh

say "2/5 build (a few minutes the first time)"
cargo build --release --locked

say "3/5 prepare images"
if [ -z "${DATA:-}" ]; then
    if [ ! -e demo/images.done ]; then
        rm -rf demo/images
        drnas-dist demo-data demo/images
        touch demo/images.done
    fi
    classes=$(find demo/images -mindepth 1 -maxdepth 1 -type d | wc -l)
fi
echo "$classes classes in $images"

say "4/5 split 60 % / 30 % and pack"
if [ ! -e "$work/lists.done" ]; then
    rm -rf "$work/lists"
    drnas-dist split "$images" --fractions 0.6,0.3 --names train,valid --out "$work/lists"
    touch "$work/lists.done"
fi
for part in train valid; do
    if [ ! -e "$work/$part/set.json" ]; then
        drnas-dist pack "$images" "$work/$part" --list "$work/lists/$part.txt" ${SKIP_BAD:+--skip-bad}
    fi
done
echo "shards in $work/train and $work/valid"

say "5/5 search on $RANKS rank$([ "$RANKS" = 1 ] || echo s)"
if [ -e "$run/report.txt" ]; then
    echo "$run has finished; set RUN=another/folder to start another search. Report:"
    echo
    cat "$run/report.txt"
else
    # The command that an interrupted search prints for resuming.
    export DRNAS_COMMAND="${DATA:+DATA=$DATA }${CONFIG:+CONFIG=$CONFIG }${RUN:+RUN=$RUN }./launch/quickstart.sh $*"
    mpirun --bind-to none -n "$RANKS" drnas-dist search-imagenet --config "$config" \
        --train "$work/train" --valid "$work/valid" --out "$run" --resume \
        --set "model.num_classes=$classes" "$@"
fi
