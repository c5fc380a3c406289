#!/usr/bin/env bash
# `qsweep compare` on small real sweeps: pairs, memory, quality, exit statuses. Nothing here depends on a timing.
set -u
cd "$(dirname "$0")/../.."
Q=${QSWEEP_BUILD:-build}/qsweep
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
n=0
check() { # STATUS SENTENCE
    n=$((n + 1))
    if [ "$1" -eq 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; sed 's/^/# /' "$T/out" "$T/err" 2>/dev/null | tail -n 25; fi
}
compare() { "$Q" compare "$@" >"$T/out" 2>"$T/err"; rc=$?; }
ended() { [ "$rc" -eq "$1" ]; }

cat >"$T/job.yaml" <<EOF
model: $PWD/tests/golden/dualar-a
sweep: {precision: [bf16, int8], batch: [1, 2]}
workload: {samples: 4, warmup: 0, processes: 2, length: fixed, max_new_tokens: 8, quality: on, texts: ["Hello, this is a test.", "Second text."]}
device: cpu
EOF
"$Q" run "$T/job.yaml" --output "$T/a" -q >"$T/out" 2>"$T/err"
check $? "a sweep with quality on runs"
"$Q" run "$T/job.yaml" --output "$T/b" --set 'sweep.batch=[1, 4]' --set quality=off -q >"$T/out" 2>"$T/err"
check $? "a second one without runs"
"$Q" run "$T/job.yaml" --output "$T/c" -q >"$T/out" 2>"$T/err"
check $? "and the first once more"

compare "$T/a" "$T/c"
ended 0 && [ "$(grep -c 'vram, MB .* exact .* same ' "$T/out")" -eq 4 ] && ! grep -q 'Not compared' "$T/out"
check $? "the same sweep twice pairs every cell and counts the same memory"

compare "$T/a" "$T/b"
ended 1 && grep -q 'nothing could be compared' "$T/err" && [ "$(grep -c 'no partner in the' "$T/out")" -eq 8 ]
check $? "quality is part of a cell's id: nothing pairs, everything is listed, exit status 1"

compare "$T/a" "$T/b" --axis batch --from 2 --to 4
ended 0 && [ "$(grep -c 'b2 ctx0 -> .*b4 ctx0 | vram.* more ' "$T/out")" -eq 2 ]
check $? "along an axis two sweeps pair although one has quality"

compare "$T/a" --axis precision --from bf16 --to int8 --fail-on vram:1%
ended 0 && [ "$(grep -c 'vram, MB .* less ' "$T/out")" -eq 2 ]
check $? "int8 takes less memory than bf16, which breaks no rule"

compare "$T/a" --axis precision --from int8 --to bf16 --fail-on vram:1%
ended 4 && [ "$(grep -c 'regression: bf16' "$T/err")" -eq 2 ]
check $? "bf16 takes more memory than int8: exit status 4 and a line for each cell"

compare "$T/a" --axis precision --from int8 --to bf16 --fail-on vram:900%
ended 0
check $? "a limit that is not reached breaks no rule"

compare "$T/a" --axis precision --from bf16 --to int8
ended 0 && grep -q 'Quality, teacher-forced' "$T/out" && [ "$(grep -cE '^\| int8 b[12] ctx0 \| bf16 \| .* of 4 passed \|$' "$T/out")" -eq 2 ]
check $? "the quality of int8 stands under the verdicts with its gates"

compare "$T/a" --axis precision --from bf16 --to int8 -o json
ended 0 && /usr/bin/python3 - "$T/out" <<'EOF'
import json, sys
d = json.load(open(sys.argv[1]))
assert len(d["comparisons"]) == 4 and not d["unmatched"] and not d["failed"]
for c in d["comparisons"]:
    assert c["verdict"] in ("faster", "slower", "same", "unclear", "less", "more"), c
    if c["metric"] == "latency":
        assert c["n"] == 8 and c["processes"] == 2 and c["paired"] and c["low"] <= c["change"] <= c["high"] and 0 <= c["p"] <= c["p_holm"] <= 1
    else:
        assert c["change"] == c["low"] == c["high"] and c["p"] is None and c["verdict"] == "less"
q = d["quality"]
assert len(q) == 2 and all(x["reference"] == "bf16" and x["texts"] == 2 and len(x["gates"]) == 4 for x in q)
assert all(0 < x["kl_mean"] < 0.01 and 0.5 < x["top1"] <= 1 and x["weight_sqnr_db"] > 38 for x in q), q
EOF
check $? "json has every verdict with its interval, and the quality"

compare "$T/a" "$T/c" -o jsonl
ended 0 && /usr/bin/python3 -c 'import json,sys; k=[json.loads(l)["kind"] for l in open(sys.argv[1])]; assert k.count("comparison")==8 and k.count("quality")==4' "$T/out"
check $? "jsonl has an object a line with its kind"
compare "$T/a" "$T/c" -o csv --metric step,frames,vram-baseline
ended 0 && /usr/bin/python3 -c 'import csv,sys; r=list(csv.DictReader(open(sys.argv[1]))); assert len(r)==12 and {x["metric"] for x in r}=={"step","frames","vram-baseline"}' "$T/out"
check $? "csv has a row a pair and metric"

usage=0
for args in "$T/a" "$T/a $T/c --metric speed" "$T/a --axis precision" "$T/a --axis precison --from bf16" "$T/a --axis precision --from bf17" \
    "$T/a $T/c --fail-on slower" "$T/a $T/c --from 1" "$T/a $T/c -o xml" "$T/a --axis model" "$T/a $T/c $T/b" "" "$T/a $T/c --margin 99"; do
    # shellcheck disable=SC2086
    compare $args
    ended 2 && [ "$(wc -l <"$T/err")" -ge 1 ] && [ ! -s "$T/out" ] || { usage=1; echo "# $args: $rc"; }
done
check $usage "wrong arguments end with 2 and a line that says why"

head -c 3000 "$T/a/sweep.h5" >"$T/cut.h5"
echo "no sweep" >"$T/text.h5"
broken=0
for file in "$T/cut.h5" "$T/text.h5" "$T/none.h5" "$T"; do
    compare "$T/a" "$file"
    ended 1 && grep -q "$file" "$T/err" || { broken=1; echo "# $file: $rc"; }
done
check $broken "what is no sweep ends with 1 and its name"
echo "1..$n"
