#!/bin/bash
# array.sh — submit a sweep as a job array of disjoint shards and a merge that waits for all of them.
#
#   slurm/array.sh 8 jobs/precision.yaml results/precision --gpus-per-node=1 --time=02:00:00
#
# usage: slurm/array.sh SHARDS[%AT_ONCE] JOB.yaml OUTPUT [options of sbatch] [-- options of qsweep run]
# Prints the two job numbers. The same command again resumes: finished cells stay. Environment as in sweep.sbatch.
set -eu
[ $# -ge 3 ] || { sed -n '/^# usage/s/^# //p' "$0" >&2; exit 2; }
shards=${1%%%*} limit=${1#"${1%%%*}"} job=$2 output=$3
shift 3
case $shards in '' | *[!0-9]* | 0*) echo "array.sh: SHARDS is \"$shards\": want a number from 1" >&2; exit 2 ;; esac
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ "${1:-}" = -- ] && shift
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$output"
export SHARDS=$shards LAUNCHER=${LAUNCHER:-none}
array=$(sbatch --parsable --array="0-$((shards - 1))$limit" --output="$output/slurm-%A_%a.out" "${options[@]}" \
    "$here/sweep.sbatch" "$job" "$output" "$@")
merge=$(sbatch --parsable --dependency="afterany:$array" --output="$output/slurm-%A-merge.out" "$here/merge.sbatch" "$output")
echo "$array $merge"
