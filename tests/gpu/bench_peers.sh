#!/usr/bin/env bash
# Weights from GPU to GPU of one host through NCCL, each process standing for a node: broadcast and all-gather, checked byte by
# byte. usage: tests/gpu/bench_peers.sh BUILD [CHECKPOINT]      Prints TAP, with seconds and GB/s as comments.
set -u
build=$(cd "$1" && pwd) checkpoint=${2:-}
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$gpus" -lt 2 ]; then
    echo "ok 1 - weights reach every GPU # skip: $gpus GPUs here, want 2"
    echo 1..1
    exit 0
fi
place=$(mktemp -d /dev/shm/qsweep-peers-XXXXXX)
trap 'rm -rf "$place"' EXIT
if [ -z "$checkpoint" ]; then
    checkpoint=$build/checkpoints/s1-mini
    [ -e "$checkpoint/config.json" ] || "$build/qsweep" synth "$checkpoint" --shape s1-mini --seed 1 >&2 || exit 1
fi
n=0 failed=0
check() { # check SENTENCE STATUS
    n=$((n + 1))
    [ "$2" -eq 0 ] && echo "ok $n - $1" || { echo "not ok $n - $1"; failed=1; }
}
stage() { "$build/qsweep" stage "$checkpoint" --recipe torchao --hash 0 "$@"; }

stage --create --file "$place/whole" --report "$place/whole.report"
check "one process quantizes the whole file" $?
bytes=$(stat -c %s "$place/whole")
for mode in broadcast all-gather; do
    rm -f "$place"/id "$place"/part-*
    parts=1
    [ $mode = all-gather ] && parts=$gpus
    for g in $(seq 0 $((gpus - 1))); do # what each "node" has before: nothing, all, or its own part
        if [ "$parts" -gt 1 ] || [ "$g" -eq 0 ]; then
            stage --create --part "$g/$parts" --file "$place/part-$g" --report "$place/part-$g.filled" || failed=1
        else
            head -c 1000000 "$place/whole" >"$place/part-$g"
            truncate -s "$bytes" "$place/part-$g"
        fi
    done
    pids=()
    for g in $(seq 0 $((gpus - 1))); do
        stage --peer "$g/$gpus" --parts "$parts" --id "$place/id" --device "$g" --file "$place/part-$g" --report "$place/part-$g.report" &
        pids+=($!)
    done
    rc=0
    for p in "${pids[@]}"; do wait "$p" || rc=1; done
    check "$mode among $gpus GPUs ends well" $rc
    rc=0
    for g in $(seq 0 $((gpus - 1))); do
        cmp -s "$place/whole" "$place/part-$g" || rc=1
        awk -v g="$g" -v m=$mode '{ printf "# %s GPU %d: init %.3f s, copies %.3f s, NCCL %.3f s", m, g, $1, $2, $3
            if ($4 > 0 && $3 > 0) printf ", %.1f MB received at %.1f GB/s", $4 / 1e6, $4 / 1e9 / $3; print "" }' "$place/part-$g.report"
    done
    check "every GPU's process then has the very bytes ($mode)" $rc
done
echo "1..$n"
exit $failed
