#!/usr/bin/env bash
# The tests that need a GPU: prints TAP. usage: test_gpu.sh BUILD   ONLY=engine|quantize|ops|sanitize|… narrows it (a word
# of a test's name inside test_engine works too, e.g. ONLY=greedy). Ends within 8 minutes, checkpoints included.
set -u
build=${1:-build}
here=$(cd "$(dirname "$0")/../.." && pwd)
cd "$here" || exit 2
if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo "ok 1 - GPU tests # skip: no GPU"
    echo "1..1"
    exit 0
fi
case ${ONLY:-} in engine | quantize | ops | sanitize | mini | codec) part=$ONLY; unset ONLY ;; "") part=all ;; *) part=engine ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 count=0
wants() { [ "$part" = all ] || [ "$part" = "$1" ]; }
# Renumber a program's TAP into one stream.
tap() {
    local line
    while IFS= read -r line; do
        case $line in
        "ok "* | "not ok "*)
            count=$((count + 1))
            [ "${line#not }" != "$line" ] && failed=$((failed + 1))
            echo "${line%%ok *}ok $count ${line#*ok [0-9]* }" ;;
        1..*) ;;
        *) echo "# $line" ;;
        esac
    done < <(timeout 240 "$@" 2>&1 || { rc=$?; [ $rc -ge 124 ] && echo "not ok 0 - $* ended with status $rc"; })
}
for shape in s1-nano s2-nano; do "$build/qsweep" synth "$work/$shape" --shape $shape --seed 1 >/dev/null 2>&1; done
wants quantize && tap "$build/tests/gpu/test_quantize"
if wants codec; then # the golden codec is narrow; the published shape has every width that tensor cores meet
    "$build/qsweep" synth "$work/codec" --shape s1-mini --seed 1 --codec >/dev/null 2>&1
    if [ -e "$work/codec/codec.pth" ]; then tap "$build/tests/gpu/test_codec" tests/golden/codec-a "$work/codec"
    else tap "$build/tests/gpu/test_codec" tests/golden/codec-a; fi
    rm -rf "$work/codec"
fi
wants ops && [ -x "$build/tests/unit/test_backend_ops" ] && tap env CMOCKA_MESSAGE_OUTPUT=TAP "$build/tests/unit/test_backend_ops"
if wants engine; then
    for c in tests/golden/dualar-a "$work/s1-nano" "$work/s2-nano"; do tap "$build/tests/gpu/test_engine" "$c" 12; done
fi
if wants engine || wants mini; then
    if "$build/qsweep" synth "$work/s1-mini" --shape s1-mini --seed 1 >/dev/null 2>&1; then
        tap "$build/tests/gpu/test_engine" "$work/s1-mini" 4
    else
        count=$((count + 1)); echo "ok $count - engine on s1-mini # skip: no room for its 1.7 GB"
    fi
fi
# racecheck and initcheck are slow and hold the card for long: only when asked for by name.
tools=memcheck
[ "$part" = sanitize ] && tools="memcheck racecheck initcheck"
if wants sanitize; then
    for tool in $tools; do
        count=$((count + 1))
        if ! command -v compute-sanitizer >/dev/null; then
            echo "ok $count - compute-sanitizer $tool # skip: not installed"; continue
        fi
        if ONLY=draws timeout 200 compute-sanitizer --tool $tool --error-exitcode 9 "$build/tests/gpu/test_engine" \
            "$work/s1-nano" 3 >"$work/$tool.log" 2>&1; then
            echo "ok $count - compute-sanitizer $tool finds nothing in a run of the engine"
        else
            failed=$((failed + 1))
            echo "not ok $count - compute-sanitizer $tool finds nothing in a run of the engine"
            grep -E "=========|not ok" "$work/$tool.log" | head -20 | sed 's/^/# /'
        fi
    done
fi
echo "1..$count"
[ $failed -eq 0 ]
