#!/usr/bin/env bash
# `qsweep bench` and `qsweep devices` on a tiny model: complete output, honest arithmetic, clear refusals. No timing is judged.
set -u
qsweep=${QSWEEP_BUILD:-build}/qsweep
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
n=0
check() { # check NAME COMMAND...
    local name=$1
    shift
    n=$((n + 1))
    if "$@" >"$dir/log" 2>&1; then echo "ok $n - $name"; else echo "not ok $n - $name"; sed 's/^/# /' "$dir/log"; fi
}
refuses() { # refuses STATUS WORD ARGS...: exit status and one line on stderr that has the word
    local want=$1 word=$2 out status
    shift 2
    out=$("$qsweep" "$@" 2>&1 >/dev/null)
    status=$?
    echo "status $status: $out"
    [ $status -eq "$want" ] && grep -q -- "$word" <<<"$out" && [ "$(wc -l <<<"$out")" -eq 1 ]
}
judge() { # judge FILE EXPRESSION: a Python expression over the JSON object d
    python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); sys.exit(0 if eval(sys.argv[2]) else repr(d))' "$1" "($2)"
}

"$qsweep" synth "$dir/nano" --shape s1-nano --seed 3 >"$dir/log" 2>&1 || { cat "$dir/log"; echo "Bail out! synth failed"; exit 1; }
bench() { "$qsweep" bench --checkpoint "$dir/nano" --read-mb 8 --frames 24 --prompt 5 "$@"; }

bench --precision int8,bf16,fp32 -o json >"$dir/bench.json" 2>"$dir/err"
check "bench measures every precision that was asked for, in that order" \
    judge "$dir/bench.json" '[r["precision"] for r in d["rows"]] == ["int8", "bf16", "fp32"]'
check "limit, GB/s and multiple of real time follow from bytes and frames" judge "$dir/bench.json" \
    'all(abs(r["limit_frames_per_s"] * r["bytes_per_frame"] / 1e9 / r["read_gb_per_s"] - 1) < 1e-9
         and abs(r["real_time"] * 44100 / 2048 / r["frames_per_s"] - 1) < 1e-9
         and abs(r["gb_per_s"] * 1e9 / r["bytes_per_frame"] / r["frames_per_s"] - 1) < 1e-9
         and r["frames_per_s_p5"] <= r["frames_per_s"] <= r["frames_per_s_p95"] and r["share"] > 0 and r["frames"] == 24
         for r in d["rows"])'
check "a frame moves fewer bytes in INT8 than in BF16, and in BF16 than in FP32" judge "$dir/bench.json" \
    'd["rows"][0]["bytes_per_frame"] < d["rows"][1]["bytes_per_frame"] < d["rows"][2]["bytes_per_frame"]'
bench --precision bf16 --frames 8 -o json >"$dir/few.json" 2>"$dir/err"
check "quantiles that eight frames cannot carry are null" \
    judge "$dir/few.json" 'd["rows"][0]["frames_per_s_p5"] is None and d["rows"][0]["frames_per_s"] > 0'
bench --batch 3 --kv int8 --head full --threads 1 >"$dir/table" 2>"$dir/err"
check "the table has a row for each precision" [ "$(grep -cE '^\| (bf16|int8) \|' "$dir/table")" -eq 2 ]
check "bench without a checkpoint says how to get one" refuses 2 "make bench" bench
check "an unknown precision is named" refuses 2 '"int9"' bench --checkpoint "$dir/nano" --precision bf16,int9
check "other devices are refused" refuses 2 'cuda' bench --checkpoint "$dir/nano" --device cuda
check "a prompt beyond the model's context is refused" refuses 2 'max_seq_len' bench --checkpoint "$dir/nano" --prompt 1000000
QSWEEP_CPU=mmx check "unknown CPU kernels are refused by name" refuses 2 'mmx' devices

"$qsweep" devices -o json >"$dir/devices.json" 2>"$dir/err"
check "devices names kernels that are here, and the reason when there is no GPU" judge "$dir/devices.json" \
    'd["cpu"]["kernels"] in d["cpu"]["available_kernels"] and "portable" in d["cpu"]["available_kernels"]
     and d["cpu"]["threads"] >= 1 and isinstance(d["gpus"], list) and (len(d["gpus"]) > 0) != (d["gpu_reason"] != "")'
first=$(taskset -pc $$ | sed 's/.*: //; s/[-,].*//')
taskset -c "$first" "$qsweep" devices -o json >"$dir/one.json" 2>"$dir/err"
check "devices obeys the affinity mask" judge "$dir/one.json" 'd["cpu"]["allowed_cpus"] == d["cpu"]["threads"] == 1'
echo "1..$n"
