#!/usr/bin/env bash
# bundle.sh — what `make bundle` runs: one folder, and its archive, with everything that a bare Linux machine needs to
# run qsweep: the programs, Open MPI's runtime, the small libraries, jobs/, slurm/ and analysis/. It runs from any path.
#
#   jobs/bundle.sh BUILD VERSION [OUT]   makes OUT/qsweep-bundle-VERSION/ and OUT/qsweep-bundle-VERSION.tar.xz; OUT is BUILD
#   XZ=-1                                compress less, for tests
#
# On the other machine: tar xf qsweep-bundle-VERSION.tar.xz; qsweep-bundle-VERSION/run qsweep doctor
# Left to the host: the C library (at least the versions named in the bundle's MANIFEST), NVIDIA's driver, cuBLAS and NCCL.
#
#   run            starts a command with everything below on its paths
#   bin/, lib/     qsweep and qsweep-mpi; the libraries for sound
#   openmpi/       mpirun with its plugins and libraries: left alone where it does not start (an older C library)
#                  and the host has an Open MPI 4 of its own
set -eu
[ $# -eq 2 ] || [ $# -eq 3 ] || { echo "usage: jobs/bundle.sh BUILD VERSION [OUT]" >&2; exit 2; }
build=$1 name=qsweep-bundle-$2 dest=${3:-$1}
cd "$(dirname "$0")/.."
out=$dest/$name.part mpi=$out/openmpi
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
cp "$build/qsweep" "$out/bin/"
cp -R jobs slurm analysis "$out/"
for file in LICENSE README.md CHANGELOG.md; do [ -e $file ] && cp $file "$out/"; done
for dir in man completion; do [ -d "$build/$dir" ] && cp -R "$build/$dir" "$out/"; done
find "$out/analysis" \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Open MPI finds its parts by the paths it was configured with; OPAL_PREFIX replaces their common prefix, so every part
# keeps its place below that. Debian's PMIx is a library of its own, with a prefix of its own.
prefix= pkglib= pmix=
if [ -x "$build/qsweep-mpi" ]; then
    field() { ompi_info --parsable --path all | sed -n "s/^path:$1://p" | head -n 1; }
    prefix=$(field prefix) pkglib=$(field pkglibdir) pkgdata=$(field pkgdatadir)
    below() { # below PATH: where it stands in the bundle
        case $1 in "$prefix"/*) echo "$mpi/${1#"$prefix"/}" ;; *) echo "bundle: $1 is not below Open MPI's prefix $prefix" >&2; exit 1 ;; esac
    }
    mkdir -p "$mpi/bin" "$mpi/lib" "$mpi/etc/openmpi"
    cp "$build/qsweep-mpi" "$out/bin/"
    cp -L "$(command -v orterun || command -v mpirun)" "$mpi/bin/mpirun"
    cp -L "$(command -v orted)" "$mpi/bin/orted"
    plugins=$(below "$pkglib") data=$(below "$pkgdata")
    mkdir -p "$plugins" "$data"
    for plugin in "$pkglib"/mca_*.so; do
        case ${plugin##*/} in # other schedulers, OpenSHMEM, MPI-IO, checkpoints, measuring: nothing that we call
        mca_spml* | mca_sshmem* | mca_scoll* | mca_memheap* | mca_atomic_* | mca_io_romio* | mca_compress_* | *_monitoring.so | \
            mca_vprotocol* | mca_ras_simulator.so | mca_btl_sm.so | mca_pml_cm.so | *_flux.so) continue ;;
        esac
        # Fabrics whose libraries a bare machine lacks: shared memory and TCP carry our few small messages.
        ldd "$plugin" 2>/dev/null | grep -qE 'not found|lib(ucp|uct|fabric|ibverbs|rdmacm|psm2|psm_infinipath|oshmem)\.so' || cp -L "$plugin" "$plugins/"
    done
    cp -RL "$pkgdata/." "$data/"
    rm -f "$data"/*oshmem* "$data"/*wrapper-data*
    printf '%s\n' 'btl = self,vader,tcp' 'pml = ob1' 'osc = ^ucx' 'mca_base_component_show_load_errors = 0' >"$mpi/etc/openmpi/openmpi-mca-params.conf"
    for dir in "$prefix"/lib/*/pmix2 "$prefix"/lib/*/pmix; do
        if [ -d "$dir/lib/pmix" ]; then
            pmix=${dir#"$prefix"/}
            mkdir -p "$mpi/$pmix/lib/pmix" "$mpi/$pmix/share"
            cp -L "$dir/lib/pmix"/*.so "$mpi/$pmix/lib/pmix/"
            cp -RL "$dir/share/." "$mpi/$pmix/share/"
            break
        fi
    done
fi

# What programs and plugins are linked with, but for the C library's own; and the libraries that qsweep opens by name.
closure() { # closure DIR FILE...: the libraries those files need, copied into DIR
    local into=$1
    shift
    ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|libutil|libnss_[a-z]*|ld-linux[^/]*|libnvidia-ml|libcuda)\.so' |
        while read -r library; do cp -L "$library" "$into/"; done
}
for library in libsndfile.so.1 libsamplerate.so.0; do
    path=$(ldconfig -p 2>/dev/null | sed -n "s/^[[:space:]]*${library//./\\.} .*=> //p" | head -n 1)
    [ -n "$path" ] && cp -L "$path" "$out/lib/$library"
done
closure "$out/lib" "$out/bin/qsweep" "$out"/lib/*.so*
if [ -n "$pkglib" ]; then
    closure "$mpi/lib" "$out/bin/qsweep-mpi" "$mpi"/bin/* "$plugins"/*.so ${pmix:+"$mpi/$pmix"/lib/pmix/*.so}
fi

sed "s|@PMIX@|$pmix|" >"$out/run" <<'RUN'
#!/bin/sh
# run COMMAND… — with the programs and libraries beside this file: `run qsweep doctor`, `run mpirun -n 2 qsweep-mpi run JOB`.
# Over several hosts give mpirun `--prefix THIS-FOLDER/openmpi` too: its daemons start there without these variables.
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
here=$(cd "$here" && pwd) || exit 1
if [ $# -eq 0 ]; then echo "usage: $0 COMMAND…   for example: $0 qsweep doctor" >&2; exit 2; fi
PATH=$here/bin:$PATH
LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH LD_LIBRARY_PATH
# Open MPI 4.1 refuses root without the first two and more ranks than cores without the third.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe-1}"
# Without ssh even a local mpirun ends, looking for it, unless the agent is set to nothing.
command -v ssh >/dev/null 2>&1 || export OMPI_MCA_plm_rsh_agent="${OMPI_MCA_plm_rsh_agent-}"
mpi=$here/openmpi
if [ -x "$mpi/bin/mpirun" ] && { LD_LIBRARY_PATH=$mpi/lib:$LD_LIBRARY_PATH OPAL_PREFIX=$mpi "$mpi/bin/mpirun" --version >/dev/null 2>&1 ||
    ! command -v mpirun >/dev/null 2>&1; }; then
    PATH=$mpi/bin:$PATH
    LD_LIBRARY_PATH=$mpi/lib:$LD_LIBRARY_PATH
    export OPAL_PREFIX="$mpi" PMIX_MCA_pcompress_base_silence_warning=1
    [ -z "@PMIX@" ] || export PMIX_INSTALL_PREFIX="$mpi/@PMIX@"
fi
exec "$@"
RUN
chmod +x "$out/run"

find "$out" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec strip --strip-unneeded {} + 2>/dev/null || true
glibc() { find "$@" -type f -exec objdump -T {} + 2>/dev/null | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1 | cut -d_ -f2; }
{
    echo "qsweep $2, $(git describe --always --dirty --abbrev=12 2>/dev/null || echo 'no version control')"
    echo "machine: $(uname -m), C library at least $(glibc "$out/bin" "$out/lib")"
    [ -n "$pkglib" ] && echo "$(mpirun --version | head -n 1), C library at least $(glibc "$mpi")"
    "$build/qsweep" doctor -o json --device cpu | sed -n '/"cuda-build"/,/}/s/.*"seen": "\(.*\)",*$/GPU code: \1/p'
} >"$out/MANIFEST"

rm -rf "$dest/$name" "$dest/$name.tar.xz"
mv "$out" "$dest/$name"
tar -C "$dest" --sort=name --owner=0 --group=0 --numeric-owner -cf - "$name" | xz "${XZ:--6}" -T2 >"$dest/$name.tar.xz.part"
mv "$dest/$name.tar.xz.part" "$dest/$name.tar.xz"
echo "bundle: $dest/$name.tar.xz, $(($(stat -c %s "$dest/$name.tar.xz") / 1000)) kB; $(tr '\n' ';' <"$dest/$name/MANIFEST")" >&2
