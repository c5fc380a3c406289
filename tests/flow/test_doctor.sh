#!/usr/bin/env bash
# `qsweep doctor`: each finding has a status and, where something is wrong, a remedy; the exit status follows what is
# needed. The driver and its cards are played by a small library of the driver's name that this test compiles.
set -u
qsweep=$(cd "$(dirname "${QSWEEP_BUILD:-build}/qsweep")" && pwd)/qsweep
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
n=0
check() { # check NAME COMMAND...
    local name=$1
    shift
    n=$((n + 1))
    if "$@" >"$dir/log" 2>&1; then echo "ok $n - $name"; else echo "not ok $n - $name"; sed 's/^/# /' "$dir/log"; fi
}
doctor() { # doctor STATUS FILE ARGS...: runs in an empty folder, JSON into FILE
    local want=$1 out=$2 status
    shift 2
    (cd "$dir" && "$qsweep" doctor -o json "$@") >"$out" 2>"$dir/err"
    status=$?
    [ $status -eq "$want" ] || { echo "status $status"; cat "$dir/err" "$out"; return 1; }
}
judge() { # judge FILE EXPRESSION: d is the object, s(name) the statuses of that check, f(name) its first finding
    python3 -c '
import json, sys
d = json.load(open(sys.argv[1]))
a = lambda name: [c for c in d["checks"] if c["name"] == name]
s = lambda name: [c["status"] for c in a(name)]
f = lambda name: a(name)[0]
sys.exit(0 if eval(sys.argv[2]) else json.dumps(d, indent=1))' "$1" "($2)"
}

check "doctor on this machine finds nothing that a CPU sweep needs missing" doctor 0 "$dir/here.json" --device cpu
check "every finding has one of the four words, and every warning and failure a remedy" judge "$dir/here.json" \
    'd["healthy"] and all(c["status"] in ("ok", "warn", "fail", "absent") for c in d["checks"])
     and all(c["remedy"] for c in d["checks"] if c["status"] in ("warn", "fail"))
     and sum(d["counts"].values()) == len(d["checks"]) >= 12'
check "nothing is left where the results would go" [ -z "$(find "$dir" -name '.qsweep*')" ]

mkdir "$dir/empty"
PATH=$dir/empty check "without mpirun a run over ranks is not possible: status 1 and a remedy" doctor 1 "$dir/ranks.json" --ranks
check "that finding names the package" judge "$dir/ranks.json" 's("mpirun") == ["fail"] and "openmpi-bin" in f("mpirun")["remedy"]'
PATH=$dir/empty check "without mpirun a run on one machine is possible" doctor 0 "$dir/solo.json"
printf '#!/bin/sh\necho "mpirun (Other MPI) 1.0"\n' >"$dir/empty/mpirun" && chmod +x "$dir/empty/mpirun"
PATH=$dir/empty:$PATH check "another mpirun is told from Open MPI" doctor 1 "$dir/other.json" --ranks
check "it is quoted" judge "$dir/other.json" '"Other MPI" in f("mpirun")["seen"]'

check "a place where no file can be written is a failure" doctor 1 "$dir/proc.json" --output /proc/results
check "that finding names the folder and the key to change" judge "$dir/proc.json" \
    'f("results-folder")["status"] == "fail" and "/proc" in f("results-folder")["seen"] and "output=" in f("results-folder")["remedy"]'
(ulimit -n 200; ulimit -l 16; doctor 0 "$dir/limits.json") >"$dir/log" 2>&1
check "low limits are warned about" judge "$dir/limits.json" 's("open-files") == s("locked-memory") == ["warn"]'
check "a folder that is no checkpoint is a failure" doctor 1 "$dir/model.json" --model "$dir/empty"
check "that finding says what is missing" judge "$dir/model.json" '"config.json" in f("model")["seen"]'
"$qsweep" synth "$dir/nano" --shape s1-nano --seed 1 >/dev/null 2>&1
check "a checkpoint opens" doctor 0 "$dir/nano.json" --model "$dir/nano"
check "its weight files are summed" judge "$dir/nano.json" 's("model") == ["ok"] and "GB" in f("model")["seen"]'

# A driver of our own: VERSION, CAPABILITY and PID decide what it says.
cat >"$dir/nvml.c" <<'C'
#include <stdlib.h>
#include <string.h>
static int number(const char *key) { const char *v = getenv(key); return v ? atoi(v) : 0; }
struct memory { unsigned long long total, free, used; };
struct process { unsigned pid; unsigned long long bytes; unsigned a, b; };
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { return e == 2 ? "Invalid Argument" : "other"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = (unsigned)number("FAKE_CARDS"); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)1; return i < (unsigned)number("FAKE_CARDS") ? 0 : 2; }
int nvmlDeviceGetHandleByUUID(const char *u, void **d) { (void)u; (void)d; return 2; }
int nvmlDeviceGetName(void *d, char *o, unsigned n) { (void)d; strncpy(o, "Test Card", n); return 0; }
int nvmlDeviceGetUUID(void *d, char *o, unsigned n) { (void)d; strncpy(o, "GPU-test", n); return 0; }
int nvmlSystemGetDriverVersion(char *o, unsigned n) { strncpy(o, "555.42", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = number("FAKE_CUDA"); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { (void)d; *a = number("FAKE_SM") / 10; *b = number("FAKE_SM") % 10; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, struct memory *m) { (void)d; m->total = 24000000000; m->used = 500000000; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, struct process *p)
{ (void)d; *n = number("FAKE_PID") != 0; p[0].pid = (unsigned)number("FAKE_PID"); p[0].bytes = 1; return 0; }
C
if cc -shared -fPIC -o "$dir/libnvidia-ml.so.1" "$dir/nvml.c" 2>"$dir/err"; then
    export LD_LIBRARY_PATH=$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    sleep 60 & other=$!
    until [ "$(cat /proc/$other/comm)" = sleep ]; do :; done # it is a shell until it becomes sleep
    export FAKE_CARDS=2 FAKE_CUDA=13010 FAKE_SM=90 FAKE_PID=$other
    doctor 0 "$dir/cards.json"
    kill $other
    check "every card is found, with the process that uses it" judge "$dir/cards.json" \
        "len(s('gpu')) == 2 and s('gpu-empty') == ['warn'] * 2 and '$other (sleep)' in f('gpu-empty')['seen']"
    FAKE_PID=0 doctor 0 "$dir/free.json"
    check "a card that nobody uses is ok" judge "$dir/free.json" 's("gpu-empty") == ["ok"] * 2'
    "$qsweep" doctor -o json >"$dir/built.json"
    if judge "$dir/built.json" 's("cuda-build") == ["ok"]' 2>/dev/null; then
        check "a driver and cards that fit are enough for --device cuda" doctor 0 "$dir/fit.json" --device cuda
        FAKE_SM=70 check "a card too old for the program's code is a failure with --device cuda" doctor 1 "$dir/old.json" --device cuda
        check "the remedy names the architecture" judge "$dir/old.json" '"CUDA_ARCH=sm_70" in f("gpu-architecture")["remedy"]'
        FAKE_SM=120 doctor 0 "$dir/new.json" --device cuda
        check "a card newer than the program's code is warned about: the driver compiles the PTX" judge "$dir/new.json" \
            's("gpu-architecture") == ["warn"] * 2 and "PTX" in f("gpu-architecture")["seen"]'
        FAKE_CUDA=11080 check "a driver too old for the program is a failure with --device cuda" doctor 1 "$dir/driver.json" --device cuda
    else
        check "a program without CUDA cannot serve --device cuda, and says how to get one" doctor 1 "$dir/nocuda.json" --device cuda
        check "that finding names the toolkit" judge "$dir/nocuda.json" '"toolkit" in f("cuda-build")["remedy"]'
    fi
    FAKE_CARDS=0 doctor 1 "$dir/none.json" --device cuda
    check "a driver without a card is a failure with --device cuda" judge "$dir/none.json" \
        's("nvidia-driver") == ["fail"] and "device 0" in f("nvidia-driver")["seen"]'
    unset LD_LIBRARY_PATH
fi
usage() { "$qsweep" doctor "$@" 2>"$dir/err" >/dev/null; [ $? -eq 2 ] && [ "$(wc -l <"$dir/err")" -le 2 ]; }
check "an unknown device is a usage error" usage --device tpu
check "a word too many is a usage error" usage now
echo "1..$n"
