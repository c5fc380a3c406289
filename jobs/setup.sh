#!/usr/bin/env bash
# setup.sh — install what a fresh Debian or Ubuntu machine lacks to build, test or report; never asks a question.
#
#   jobs/setup.sh --for build|report|test|cluster     (each includes the one before it; cluster adds Slurm)
#   jobs/setup.sh --for test --check                  (only say what is missing: exit 1 if anything is)
#
# Installs with apt where it may (root, or sudo without a password). Elsewhere it prints the exact packages, or what
# to load on a cluster with modules, and stops with status 1. QSWEEP_SETUP=off skips it altogether.
set -u
level=build check=0
while [ $# -gt 0 ]; do
    case $1 in
    --for) level=${2:-}; shift ;;
    --check) check=1 ;;
    *) echo "usage: jobs/setup.sh --for build|report|test|cluster [--check]" >&2; exit 2 ;;
    esac
    shift
done
case $level in build | report | test | cluster) ;; *) echo "setup: --for wants build, report, test or cluster" >&2; exit 2 ;; esac
[ "${QSWEEP_SETUP:-on}" = off ] && exit 0
cd "$(dirname "$0")/.." || exit 1

missing=()
need() { # need PACKAGE COMMAND...: the package is missing when the probe fails
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
have() { command -v "$1"; }
header() { printf '#include <%s>\n' "$1" | ${CC:-cc} -E -x c -; }
python_has() { /usr/bin/python3 -c "import $1"; }
fuzzer_links() { printf 'int LLVMFuzzerTestOneInput(const char*d,long n){return 0;}' | clang -x c - -fsanitize=fuzzer -o /dev/null; }

need gcc have "${CC:-cc}"
need g++ have g++
need make have make
need pkg-config have "${PKG:-pkg-config}"
need libc6-dev header stdio.h
if [ ${#missing[@]} -gt 0 ]; then # without a compiler and pkg-config the probes below say nothing: take the whole list
    missing+=(libc6-dev libhdf5-dev libjansson-dev libyaml-dev libpcre2-dev libxxhash-dev nettle-dev libhwloc-dev zlib1g-dev)
    missing+=(libsndfile1-dev libsamplerate0-dev)
    case $level in test | cluster) missing+=(libcmocka-dev) ;; esac
else
    need libhdf5-dev pkg-config --exists hdf5-serial
    need libjansson-dev pkg-config --exists jansson
    need libyaml-dev pkg-config --exists yaml-0.1
    need libpcre2-dev pkg-config --exists libpcre2-8
    need libxxhash-dev pkg-config --exists libxxhash
    need nettle-dev pkg-config --exists nettle
    need libhwloc-dev pkg-config --exists hwloc
    need zlib1g-dev pkg-config --exists zlib
    need libsndfile1-dev pkg-config --exists sndfile
    need libsamplerate0-dev pkg-config --exists samplerate
    case $level in test | cluster) need libcmocka-dev pkg-config --exists cmocka ;; esac
fi
need openmpi-bin have mpirun
need libopenmpi-dev have mpicc
if [ $level != build ]; then
    need python3 have python3
    need python3-venv python3 -c "import venv, ensurepip"
fi
case $level in
test | cluster)
    need python3-h5py python_has h5py
    need python3-pandas python_has pandas
    need hdf5-tools have h5dump
    need openssh-server test -x /usr/sbin/sshd
    need openssh-client have ssh
    need xz-utils have xz
    need groff-base have groff
    need procps have pkill
    need clang have clang
    if have clang >/dev/null; then # the runtime's package carries clang's version in its name
        major=$(clang -dumpversion | cut -d. -f1)
        need "libclang-rt-$major-dev" fuzzer_links
    else
        candidate=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -1)
        [ -n "$candidate" ] && missing+=("libclang-rt-$candidate-dev")
    fi
    need gcc-aarch64-linux-gnu have aarch64-linux-gnu-gcc
    need libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdio.h
    ;;
esac
if [ $level = cluster ]; then
    need slurm-wlm have slurmctld
    need munge have munged
    need iproute2 have ip
    need libpmix-dev bash -c 'ls /usr/lib/*/libpmix.so /usr/lib/*/pmix*/lib/libpmix.so'
fi

if [ ${#missing[@]} -gt 0 ]; then
    packages=$(printf '%s\n' "${missing[@]}" | sort -u | tr '\n' ' ')
    sudo=
    [ "$(id -u)" -ne 0 ] && sudo="sudo -n"
    if [ $check -eq 1 ] || ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! $sudo true 2>/dev/null; }; then
        echo "setup: missing: $packages" >&2
        echo "setup: on Debian or Ubuntu:  sudo apt-get install -y --no-install-recommends $packages" >&2
        echo "setup: on a cluster load modules that give gcc, openmpi, hdf5 (serial), hwloc, jansson, libyaml, pcre2," >&2
        echo "setup: xxhash, nettle, libsndfile and libsamplerate, then run make again; QSWEEP_SETUP=off skips this check" >&2
        exit 1
    fi
    echo "setup: installing $packages" >&2
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    # Daemons that a package would start (munge, slurm) stay off: policy-rc.d says no while we install.
    policy=/usr/sbin/policy-rc.d
    made_policy=0
    if [ ! -e $policy ] && [ -z "$sudo" ]; then printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made_policy=1; fi
    # shellcheck disable=SC2086
    { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $packages; } >"$log" 2>&1 </dev/null
    rc=$?
    [ $made_policy -eq 1 ] && rm -f $policy
    if [ $rc -ne 0 ]; then
        tail -n 15 "$log" >&2
        echo "setup: apt-get failed (log: $log); the packages wanted were: $packages" >&2
        exit 1
    fi
    rm -f "$log"
fi
[ $level = build ] && exit 0

# The report's Python: a venv of its own with pinned versions; the system's packages where pip cannot go.
build=${BUILD:-build}
want=$(cksum <analysis/requirements.txt)
if [ "$(cat "$build/python.stamp" 2>/dev/null)" != "$want" ] || ! "$build/python" -c 'import h5py, pandas, jinja2' 2>/dev/null; then
    [ $check -eq 1 ] && { echo "setup: the Python environment of analysis/ is missing: run make compare" >&2; exit 1; }
    mkdir -p "$build"
    rm -rf "$build/venv" "$build/python"
    echo "setup: making $build/venv for the report" >&2
    if python3 -m venv "$build/venv" && "$build/venv/bin/pip" install -q --disable-pip-version-check -r analysis/requirements.txt </dev/null; then
        printf '#!/bin/sh\nexec "$(dirname "$0")/venv/bin/python" "$@"\n' >"$build/python"
    elif /usr/bin/python3 -c 'import h5py, pandas, jinja2' 2>/dev/null; then
        echo "setup: pip could not install; using the system's Python packages" >&2
        printf '#!/bin/sh\nexec /usr/bin/python3 "$@"\n' >"$build/python"
    else
        echo "setup: pip could not install analysis/requirements.txt and the system's Python lacks them:" >&2
        echo "setup:   sudo apt-get install -y python3-h5py python3-pandas python3-jinja2" >&2
        exit 1
    fi
    chmod +x "$build/python"
    echo "$want" >"$build/python.stamp"
fi
exit 0
