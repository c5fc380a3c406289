#!/usr/bin/env bash
# The bundle works on a bare machine: unpacked at another path, in a root with the C library and sh only, it makes a
# checkpoint, sweeps over it alone and over two MPI ranks, and shows the results.
set -u
build=$(cd "${QSWEEP_BUILD:-build}" && pwd)
cd "$(dirname "$0")/../.." || exit 1
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
n=0
check() { # check NAME COMMAND...
    local name=$1
    shift
    n=$((n + 1))
    if "$@" >"$dir/log" 2>&1; then echo "ok $n - $name"; else echo "not ok $n - $name"; tail -n 40 "$dir/log" | sed 's/^/# /'; fi
}
has() { grep -qE -- "$2" "$1" || { cat "$1"; return 1; }; }

for program in xz objdump; do
    command -v $program >/dev/null || { echo "ok 1 - the bundle is made # skip no $program here"; echo 1..1; exit 0; }
done
check "the bundle is made" env XZ=-1 jobs/bundle.sh "$build" 0.0.0 "$dir"
archive=$dir/qsweep-bundle-0.0.0.tar.xz
check "nothing unfinished is left beside it" [ "$(find "$dir" -maxdepth 1 -name '*.part' | wc -l)" -eq 0 ]
check "no file in it is a link to outside, a bytecode cache or a virtual environment" \
    bash -c '! tar -tvf "$1" | grep -E "^l|__pycache__|pyvenv.cfg"' - "$archive"

enter=(unshare --mount --pid --fork --propagation private)
[ "$(id -u)" -eq 0 ] || enter=(unshare --user --map-root-user --mount --pid --fork)
mkdir "$dir/try"
if ! "${enter[@]}" sh -c 'mount -t proc proc "$1" && chroot / true' - "$dir/try" 2>"$dir/err"; then
    echo "ok $((n + 1)) - the bundle runs in a bare root # skip no own root here: $(head -n 1 "$dir/err")"
    echo "1..$((n + 1))"
    exit 0
fi

# The root: sh, and the C library as this system has it; no ssh, no coreutils, no Open MPI, no HDF5.
root=$dir/root
mkdir -p "$root"/{bin,proc,dev,sys,tmp,etc,opt,root,dev/shm}
cp -L /bin/sh "$root/bin/sh"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
for library in $(ldd /bin/sh | grep -o '/[^ ]*ld-linux[^ ]*') $(ldconfig -p | sed -n 's/^[[:space:]]*\(libc\|libm\|libdl\|librt\|libpthread\|libresolv\|libutil\|libnss_files\)\.so\.[0-9]* .*=> //p'); do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
done
tar -C "$root/opt" -xf "$archive" && mv "$root/opt/qsweep-bundle-0.0.0" "$root/opt/moved here"
inside() { # inside COMMAND...: through the bundle's run, in the root's /tmp
    "${enter[@]}" sh -c '
        root=$1; shift
        mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" && mount --rbind /sys "$root/sys" && mount -t tmpfs tmpfs "$root/dev/shm" || exit 99
        exec env -i PATH=/bin HOME=/root "$(command -v chroot)" "$root" /bin/sh -c "cd /tmp && exec \"/opt/moved here/run\" \"\$@\"" sh "$@"' \
        - "$root" "$@" </dev/null
}
check "the programs start with nothing but the bundle" inside qsweep --version
check "doctor has nothing against the bare machine" inside qsweep doctor --device cpu
inside qsweep doctor --device cpu --ranks >"$dir/doctor" 2>&1
check "doctor finds the bundle's Open MPI and the sound libraries" has "$dir/doctor" '^ok +mpirun .*moved here'
check "the sound libraries open" bash -c '[ "$(grep -c "^ok *audio" "$1")" -eq 2 ]' - "$dir/doctor"
check "synth makes a checkpoint" inside qsweep synth /tmp/nano --shape s1-nano --seed 1
cat >"$root/tmp/job.yaml" <<'Y'
model: /tmp/nano
sweep:
  precision: [bf16, int8]
workload: {texts: {reference: [short]}, samples: 1, warmup: 1, length: fixed, max_new_tokens: 8}
Y
check "run sweeps" inside qsweep run job.yaml --set output=/tmp/solo
inside qsweep show /tmp/solo/sweep.h5 -o jsonl >"$dir/solo" 2>"$dir/err"
check "show prints both cells, both ok" bash -c '[ "$(grep -c "\"status\": *\"ok\"" "$1")" -eq 2 ]' - "$dir/solo"
if [ -x "$build/qsweep-mpi" ]; then
    check "two ranks sweep over the bundle's Open MPI" inside mpirun -n 2 qsweep-mpi run job.yaml --set output=/tmp/ranks
    inside qsweep show /tmp/ranks/sweep.h5 -o jsonl >"$dir/ranks" 2>"$dir/err"
    check "show prints both cells of the two ranks, both ok" bash -c '[ "$(grep -c "\"status\": *\"ok\"" "$1")" -eq 2 ]' - "$dir/ranks"
    check "run --ranks finds that mpirun by itself" inside qsweep run job.yaml --ranks 2 --set output=/tmp/own
else
    echo "ok $((n += 1)) - two ranks sweep over the bundle's Open MPI # skip built without MPI"
fi
inside >"$dir/out" 2>"$dir/err"
check "run without a command says how it is used" has "$dir/err" 'usage'
echo "1..$n"
