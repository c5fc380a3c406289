#!/usr/bin/env bash
# `qsweep quantize` as a user meets it: names, exit statuses, JSON, signals, a full disk.
set -u
qsweep=${QSWEEP_BUILD:?}/qsweep
source=$(cd "$(dirname "$0")/../golden/dualar-a" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/qsweep-flow-XXXXXX")
main=$BASHPID # a forked child that a signal meets before its exec would run the trap, too
trap '[ "$BASHPID" = "$main" ] && { umount "$work/small"; rm -rf "$work"; } 2>/dev/null' EXIT
cd "$work" || exit 1
mkdir ckpt
cp "$source"/{config.json,model.pth,tokenizer.tiktoken,special_tokens.json} ckpt/

n=0
check() { # check STATUS SENTENCE
    n=$((n + 1))
    if [ "$1" -eq 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; fi
}

"$qsweep" quantize ckpt/ --mode int8 >out.txt 2>err.txt
rc=$?
dir=$(sed -n 's/^output  *//p' out.txt)
[ $rc -eq 0 ] && [[ $dir =~ ^ckpt-int8-torchao-[0-9]{8}_[0-9]{6}$ ]] && [ -f "$dir/model.safetensors" ]
check $? "the default folder is CKPT-int8-RECIPE-YYYYMMDD_HHMMSS"
[ ! -s err.txt ]
check $? "nothing goes to stderr when all is well and it is short"

(cd ckpt && "$qsweep" quantize . --recipe legacy >../out.txt 2>&1)
dir=$(sed -n 's/^output  *//p' out.txt)
[[ $dir == "$work"/ckpt-int8-legacy-* ]] && [ -d "$dir" ]
check $? "a checkpoint named . is written beside the folder, not inside it"

"$qsweep" quantize ckpt --recipe torchao-v2 --output v2 -o json >out.json 2>err.txt &&
    python3 - out.json <<'EOF'
import json, os, sys
r = json.load(open(sys.argv[1]))
assert r["recipe"] == "torchao-v2" and r["output"] == "v2" and r["mode"] == "int8"
assert abs(r["ratio"] - r["bytes_after"] / r["bytes_before"]) < 1e-5
header = int.from_bytes(open("v2/model.safetensors", "rb").read(8), "little")
assert os.path.getsize("v2/model.safetensors") == 8 + header + r["bytes_after"]
c = json.load(open("v2/config.json"))
assert list(c) == sorted(c) and c["quantization"]["recipe"] == "torchao-v2" and len(c["quantization"]["source_hash"]) == 32
EOF
check $? "-o json prints one object whose bytes are those of the file"

before=$(ls -laR v2)
"$qsweep" quantize ckpt --output v2 >/dev/null 2>err.txt
[ $? -eq 2 ] && grep -q "never overwritten" err.txt && [ "$before" = "$(ls -laR v2)" ]
check $? "an existing folder is refused with status 2 and left as it is"

bad=0
for arguments in "" "ckpt --mode int4" "ckpt --recipe best" "ckpt --device tpu" "ckpt -o xml" "ckpt --threads 0" "ckpt extra" "ckpt --no-such"; do
    # shellcheck disable=SC2086 # the words are arguments
    "$qsweep" quantize $arguments >/dev/null 2>err.txt
    [ $? -eq 2 ] && [ -s err.txt ] || { bad=1; echo "# quantize $arguments"; }
done
check $bad "wrong usage ends with status 2 and a line on stderr"
"$qsweep" quantize nowhere >/dev/null 2>err.txt
[ $? -eq 1 ] && grep -q nowhere err.txt
check $? "a checkpoint that is not there ends with status 1 and its name"
"$qsweep" quantize v2 --output twice >/dev/null 2>err.txt
[ $? -eq 1 ] && grep -q "quantized already" err.txt && [ ! -e twice ]
check $? "a quantized checkpoint is not quantized again"

bad=0
for recipe in torchao torchao-v2 legacy; do
    "$qsweep" quantize ckpt --recipe $recipe --output "same-$recipe" >/dev/null 2>err.txt || bad=1
    for model in "same-$recipe" "ckpt --recipe $recipe"; do
        # shellcheck disable=SC2086 # the words are arguments
        "$qsweep" generate $model --precision int8 --text "Hello there." --frames 16 --seed 3 --codes codes.json >/dev/null 2>err.txt || bad=1
        python3 -c 'import json; r = json.load(open("codes.json")); print(r["prompt"], r["frames"])' >"${model%% *}.frames" || bad=1
    done
    [ -s ckpt.frames ] && cmp -s "same-$recipe.frames" ckpt.frames || { bad=1; echo "# $recipe differs"; }
done
check $bad "frames from a quantized folder equal those of quantizing at load, for every recipe"

# A signal at any moment: either the whole folder or nothing of it.
bad=0 stopped=0
for signal in INT TERM; do
    for delay in 0.001 0.003 0.005 0.007 0.010 0.014 0.018 0.025 0.035 0.050; do
        out=hit-$signal-$delay
        "$qsweep" quantize ckpt --output "$out" --threads 1 >/dev/null 2>&1 &
        pid=$!
        sleep $delay
        kill -$signal $pid 2>/dev/null
        wait $pid
        rc=$?
        if [ -d "$out" ]; then
            [ -f "$out/config.json" ] && [ -f "$out/model.safetensors" ] || bad=1
        else
            stopped=$((stopped + 1))
            # Until the handler is set a signal simply ends the process: 128 + its number.
            [ $rc -eq 1 ] || [ $rc -gt 128 ] || bad=1
        fi
    done
done
ls -d -- *.tmp.* >/dev/null 2>&1 && bad=1
echo "# $stopped of 20 were stopped in time"
check $bad "SIGINT and SIGTERM leave a complete folder or nothing"

(ulimit -f 512 && exec "$qsweep" quantize ckpt --output limited) >/dev/null 2>err.txt
[ $? -eq 1 ] && ! ls -d limited* >/dev/null 2>&1 && grep -q "cannot write" err.txt
check $? "a write that fails ends with status 1 and leaves nothing"

sentence="a disk without room is refused before anything is written"
mkdir small
if mount -t tmpfs -o size=3m tmpfs small 2>/dev/null; then
    "$qsweep" quantize ckpt --output small/out >/dev/null 2>err.txt
    [ $? -eq 1 ] && grep -q "are free there" err.txt && [ -z "$(ls -A small)" ]
    check $? "$sentence"
    umount small
else
    n=$((n + 1))
    echo "ok $n - $sentence # skip mounting a small disk is not allowed here"
fi
echo "1..$n"
