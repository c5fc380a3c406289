#!/usr/bin/env bash
# Build the fuzz targets and run each for two seconds; `make fuzz FUZZ_SECONDS=N` runs them longer. Prints TAP.
set -u
cd "$(dirname "$0")/../.."
build=${QSWEEP_BUILD:-build}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n); int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { (void)d; (void)n; return 0; }' >"$work/x.c"
if ! clang -fsanitize=fuzzer,address,undefined "$work/x.c" -o "$work/x" 2>"$work/log"; then
    echo "ok 1 - fuzz targets run # skip no clang with libFuzzer and the sanitizers here"
    echo "1..1"
    exit 0
fi
if ! make --no-print-directory fuzz-build BUILD="$build" >"$work/log" 2>&1; then
    sed 's/^/# /' "$work/log" | tail -n 20
    echo "not ok 1 - fuzz targets build"
    echo "1..1"
    exit 1
fi
exec tests/fuzz/run "$build/fuzz" 2
