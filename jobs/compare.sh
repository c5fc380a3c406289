#!/usr/bin/env bash
# compare.sh — what `make compare` runs: a checkpoint (given or synthesized), its INT8 copy, the BF16-against-INT8 sweep,
# the table, the reference's two JSON files and the report. Never asks; running it again resumes.
#
#   CHECKPOINT=DIR   the model; default: a synthetic one of the real formats under build/checkpoints
#   SAMPLES=N        requests per text            JOB=FILE     another job file
#   DEVICE=cpu|cuda  default: cuda when a GPU is usable
#   CODEC=off|fp32|bf16|int8   the same codec in every cell, default bf16 where the checkpoint has codec.pth
#   CHECKPOINTS=DIR  where synthetic ones are kept, default build/checkpoints
#   OUTPUT=DIR       default results/compare      FRESH=1      measure anew; the old folder is renamed
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
qsweep=$build/qsweep
output=${OUTPUT:-results/compare}
job=${JOB:-jobs/compare.yaml}
say() { printf 'compare: %s\n' "$*" >&2; }

gpus=$("$qsweep" devices -o json | grep -c '"uuid"' || true) # no Python so far: a bare machine may have none
device=${DEVICE:-$([ "$gpus" -gt 0 ] && echo cuda || echo cpu)}

if [ -n "${CHECKPOINT:-}" ]; then
    checkpoint=${CHECKPOINT%/}
else
    synthetic=1
    shape=${SHAPE:-$([ "$device" = cuda ] && echo s1-mini || echo s1-nano)}
    checkpoint=${CHECKPOINTS:-$build/checkpoints}/$shape
    [ -e "$checkpoint/config.json" ] || "$qsweep" synth "$checkpoint" --shape "$shape" --seed 1 --codec >&2
fi

# The INT8 copy is made once: it is reused while its recorded source is this very checkpoint.
source_hash=$("$qsweep" inspect "$checkpoint" -o json | sed -n 's/^  "fingerprint": "\([0-9a-f]*\)".*/\1/p')
[ -n "$source_hash" ] || { say "$checkpoint: no fingerprint; see qsweep inspect"; exit 1; }
int8=
for dir in "$checkpoint"-int8-torchao-*; do
    if [ -e "$dir/config.json" ] && grep -q "\"source_hash\": \"$source_hash\"" "$dir/config.json"; then int8=$dir; fi
done
if [ -z "$int8" ]; then
    "$qsweep" quantize "$checkpoint" --mode int8 --recipe torchao >&2
    for dir in "$checkpoint"-int8-torchao-*; do int8=$dir; done
else
    say "reusing $int8 (made from this checkpoint)"
fi

args=(--set "model=$checkpoint" --set "prequantized.int8=$int8" --set "device=$device" --set "output=$output")
# Random weights never stop by themselves: 256 frames on a GPU, 128 on a CPU (2 minutes on two cores, codec included).
[ -n "${synthetic:-}" ] && args+=(--set "workload.max_new_tokens=$([ "$device" = cuda ] && echo 256 || echo 128)")
codec=${CODEC:-$([ -e "$checkpoint/codec.pth" ] && echo bf16 || echo off)}
args+=(--set "codec=$codec")
[ "$codec" != off ] && args+=(--set audio=keep) # the report plays the first sound of every text
[ -n "${SAMPLES:-}" ] && args+=(--set "workload.samples=$SAMPLES")
[ "${SAMPLES:-}" = 1 ] && args+=(--set workload.processes=1) # one sample cannot be spread over two processes

# The same job and weights resume; anything else, or FRESH=1, moves the old folder aside. Nothing is deleted.
resume=()
if [ -e "$output/plan.json" ]; then
    planned=$("$qsweep" run "$job" "${args[@]}" --dry-run -o ids | sort)
    if [ "${FRESH:-0}" != 1 ] && [ "$planned" = "$(grep -oE '"ids": *\[[^]]*' "$output/plan.json" | grep -oE '[0-9a-f]{32}' | sort)" ]; then
        resume=(--resume)
    fi
fi
if [ -e "$output" ] && [ ${#resume[@]} -eq 0 ]; then
    old=$output-$(date -r "$output" +%Y%m%d_%H%M%S)
    [ -e "$old" ] && old=$old-$$
    mv "$output" "$old"
    say "moved the earlier results to $old"
fi

ranks=()
[ "$device" = cuda ] && [ "$gpus" -gt 1 ] && [ -x "$build/qsweep-mpi" ] && ranks=(--ranks "$gpus")
status=0
"$qsweep" run "$job" "${args[@]}" ${resume[@]+"${resume[@]}"} ${ranks[@]+"${ranks[@]}"} || status=$?
[ $status -eq 0 ] || [ $status -eq 3 ] || exit $status

"$qsweep" export "$output/sweep.h5" "$output" >&2
report=
if [ -x "$build/python" ]; then
    report=$output/comparison_report.html
    "$build/python" analysis/report.py "$output/sweep.h5" -o "$report"
else
    say "no $build/python with h5py and pandas: the report is left to a machine that has them"
fi
"$qsweep" show "$output/sweep.h5"
say "files: $output/sweep.h5 $output/bf16_results.json $output/int8_results.json $report"
exit $status
