#!/usr/bin/env bash
# GPU benchmarks: the card, where a frame's time goes, decode speed. usage: bench_gpu.sh BUILD [DIR for checkpoints]
# ONLY=card|stages|mini|batch|pro narrows it. Ends within 8 minutes, checkpoints included.
set -u
build=${1:-build}
if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo "skipped: no GPU"
    exit 0
fi
wants() { [ -z "${ONLY:-}" ] || [ "$ONLY" = "$1" ]; }
dir=${2:-$build/checkpoints}
mkdir -p "$dir"
synth() { [ -e "$dir/$1/config.json" ] || "$build/qsweep" synth "$dir/$1" --shape "$1" --seed 1 >/dev/null 2>&1; }
bench() { "$build/tests/gpu/bench_decode" "$@" || echo "failed: $*"; }
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader
if wants card; then
    "$build/tests/gpu/bench_card" | tee "$dir/card.txt"
fi
[ -e "$dir/card.txt" ] && export QSWEEP_BANDWIDTH=$(awk '/^bandwidth/{print $2}' "$dir/card.txt")
synth s1-mini
if wants mini; then
    for p in bf16 int8; do bench "$dir/s1-mini" $p bf16 semantic 1 512 256 20; done
    for p in bf16 int8; do bench "$dir/s1-mini" $p bf16 full 1 512 256 20; done
fi
if wants stages; then
    for p in bf16 int8; do "$build/tests/gpu/bench_stages" "$dir/s1-mini" $p bf16 semantic 1 512; done
fi
if wants batch; then
    bench "$dir/s1-mini" int8 int8 semantic 8 1024 256 5
    bench "$dir/s1-mini" int8 int8 semantic 32 1024 256 5
fi
if wants pro; then
    synth s2-pro
    for p in bf16 int8; do bench "$dir/s2-pro" $p bf16 semantic 1 512 256 5; done
fi
