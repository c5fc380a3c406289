#!/usr/bin/env bash
# The C code compiles without a warning with gcc, clang and for aarch64. Files that need MPI or CUDA are left to the build.
set -u
cd "$(dirname "$0")/../.." || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# Headers that are the same on every architecture, for the cross compiler, which has only its own C library.
mkdir "$tmp/include"
for h in jansson.h yaml.h xxhash.h xxh3.h pcre2.h sndfile.h samplerate.h zlib.h zconf.h hwloc.h hwloc nettle; do
    [ -e "/usr/include/$h" ] && ln -s "/usr/include/$h" "$tmp/include/$h"
done
for h in "/usr/include/$(gcc -print-multiarch)"/{jansson_config,zconf}.h /usr/include/jansson_config.h; do [ -e "$h" ] && ln -sf "$h" "$tmp/include/"; done
hdf5=$(pkg-config --cflags hdf5-serial)
flags="-std=c11 -D_GNU_SOURCE -DQSWEEP_VERSION=\"0\" -Wall -Wextra -Wshadow -Wno-unused-parameter -Werror -Isrc -I. -pthread -fsyntax-only"
files=$(find src -name '*.c' ! -name 'fabric_mpi.c' ! -name 'cuda*.c' ! -name 'peer.c' | sort)
number=0
check() { # check NAME COMPILER EXTRA...
    number=$((number + 1))
    local name=$1 compiler=$2
    shift 2
    if ! command -v "$compiler" >/dev/null; then
        echo "ok $number - $name # skip no $compiler here"
        return
    fi
    # shellcheck disable=SC2086
    if printf '%s\n' $files | xargs -P "$(nproc)" -I{} sh -c '"$@" "{}"' sh "$compiler" $flags "$@" >"$tmp/log" 2>&1; then
        echo "ok $number - $name"
    else
        echo "not ok $number - $name"
        head -n 20 "$tmp/log" | sed 's/^/# /'
    fi
}
# shellcheck disable=SC2086
check "clang compiles every file without a warning" clang $hdf5
# shellcheck disable=SC2086
check "gcc for aarch64 compiles every file without a warning" aarch64-linux-gnu-gcc -I"$tmp/include" $hdf5
echo "1..$number"
