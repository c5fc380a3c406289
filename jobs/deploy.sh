#!/usr/bin/env bash
# deploy.sh — measure on another machine: copy the bundle there, look at the machine, run the comparison, bring the results
# back. A dropped connection is taken up again; the run itself goes on there without us. Ends no process there, ever.
#
#   jobs/deploy.sh [HOST]            HOST as ssh knows it; default: RUNPOD_HOST, else the ssh config's host `runpod`
#     --host HOST                    the same
#     --heavy                        20 samples a text
#     --samples N                    N samples a text (default 10)
#     --skip-sync                    the bundle is there already: copy nothing
#     --checkpoint DIR               a checkpoint's folder on that machine (default: a synthetic one)
#     --device cpu|cuda              default cuda: a machine without a usable GPU is refused
#     --output DIR                   where the results come to, default results/deploy-HOST
#
#   REMOTE_PATH   folder on that machine, default /workspace/qsweep (made if it can be)
#   BUNDLE        the archive, default: the newest build/release/qsweep-bundle-*.tar.xz or build/qsweep-bundle-*.tar.xz
#   SSH           the ssh command, default `ssh` ("ssh -F my_config -p 2222")
#   RETRIES       how often a broken connection is tried again before giving up, default 30 (about 20 minutes)
#   CODEC, SHAPE  as for jobs/compare.sh
#
# Interrupt it when you like and start it again with the same arguments: it finds the running comparison and follows it,
# or the finished one and brings it home. Exit status: that of the comparison (3: some cells failed), 1 for trouble here.
set -u
say() { printf 'deploy: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//;p}' "$0"; }

host= samples=10 sync=1 checkpoint= device=cuda output=
while [ $# -gt 0 ]; do
    case $1 in
    --heavy) samples=20 ;;
    --skip-sync) sync=0 ;;
    --host | --samples | --checkpoint | --device | --output)
        [ $# -ge 2 ] || { say "$1 wants a value"; exit 2; }
        case $1 in --host) host=$2 ;; --samples) samples=$2 ;; --checkpoint) checkpoint=$2 ;; --device) device=$2 ;; --output) output=$2 ;; esac
        shift ;;
    -h | --help) usage; exit 0 ;;
    -*) say "unknown option $1; jobs/deploy.sh --help"; exit 2 ;;
    *) [ -z "$host" ] || { say "two hosts: $host and $1"; exit 2; }; host=$1 ;;
    esac
    shift
done
host=${host:-${RUNPOD_HOST:-runpod}}
remote=${REMOTE_PATH:-/workspace/qsweep}
# These go through a shell on the other side, so they are held to letters that no shell treats in a way of its own.
plain() { case $2 in '' | -* | *[!A-Za-z0-9._/@:+=,~-]*) say "$1 \"$2\": only letters, digits and ._/@:+=,~- are taken, and no leading dash"; exit 2 ;; esac; }
plain host "$host"; plain REMOTE_PATH "$remote"
[ -z "$checkpoint" ] || plain --checkpoint "$checkpoint"
case $samples in '' | *[!0-9]* | 0* | ??????*) say "--samples $samples: want a number from 1 to 99999"; exit 2 ;; esac
case $device in cpu | cuda) ;; *) say "--device $device: want cpu or cuda"; exit 2 ;; esac
for name in CODEC SHAPE; do [ -z "${!name:-}" ] || plain $name "${!name}"; done
case $remote in /*) ;; *) say "REMOTE_PATH $remote: want an absolute path"; exit 2 ;; esac
cd "$(dirname "$0")/.." || exit 1
output=${output:-results/deploy-${host##*@}}
mkdir -p "$output" || exit 1

# One connection for everything would die as one; each step has its own, and a lost one (ssh's status 255) is tried again.
read -r -a ssh_command <<<"${SSH:-ssh}"
connect() { "${ssh_command[@]}" -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=10 -o ServerAliveCountMax=3 "$host" "$@"; }
tries=0
again() { # again: wait before the next try, or give up
    tries=$((tries + 1))
    [ $tries -le "${RETRIES:-30}" ] || die "no connection to $host after $((tries - 1)) tries; a comparison that was started goes on there: run the same command later"
    local wait=$((tries < 6 ? 2 ** tries : 60))
    [ -n "${RETRY_SECONDS:-}" ] && wait=$RETRY_SECONDS
    say "the connection to $host is gone; trying again in $wait s ($tries of ${RETRIES:-30})"
    sleep "$wait"
}
on_host() { # on_host SCRIPT [ARGS]: a sh script there; arguments are plain words; returns its status
    local script=$1 status
    shift
    while :; do
        connect sh -s -- "$@" <<<"$script"
        status=$?
        [ $status -eq 255 ] || { tries=0; return $status; }
        again
    done
}

# ---- the bundle --------------------------------------------------------------------------------------------------
if [ $sync -eq 1 ]; then
    bundle=${BUNDLE:-$(ls -t build/release/qsweep-bundle-*.tar.xz build/qsweep-bundle-*.tar.xz 2>/dev/null | head -n 1)}
    [ -n "$bundle" ] && [ -e "$bundle" ] || die "no bundle${bundle:+ at $bundle}: run \`make release\` (code for every card) or \`make bundle\` first"
    sum=$(sha256sum <"$bundle" | cut -d' ' -f1)
    size=$(stat -c %s "$bundle")
    while :; do
        # The answer is "have" when that very archive is unpacked there, else the number of its bytes that arrived before.
        answer=$(on_host 'mkdir -p "$1" && cd "$1" || exit 1
            command -v xz >/dev/null || { echo "xz is missing there: apt-get install xz-utils" >&2; exit 1; }
            if [ "$(cat bundle/SHA256 2>/dev/null)" = "$2" ]; then echo have; else stat -c %s "incoming-$2" 2>/dev/null || echo 0; fi' "$remote" "$sum") ||
            die "$host: the folder $remote cannot be used (set REMOTE_PATH)"
        [ "$answer" = have ] && break
        case $answer in '' | *[!0-9]*) die "$host answers \"$answer\": its shell must print nothing of its own when it starts without a terminal" ;; esac
        [ "$answer" = "${before:-}" ] || tries=0 # it moved on: the line is slow, not dead
        before=$answer
        say "sending $bundle: $(((size - answer) / 1000)) of $((size / 1000)) kB"
        tail -c +$((answer + 1)) "$bundle" | connect "cat >>'$remote/incoming-$sum'"
        status=${PIPESTATUS[1]}
        if [ "$status" -eq 255 ]; then again; continue; fi
        [ "$status" -eq 0 ] || die "$host: $remote cannot be written (disk full?)"
        on_host 'cd "$1" || exit 1
            if [ "$(sha256sum <"incoming-$2" | cut -d" " -f1)" != "$2" ]; then rm -f "incoming-$2"; echo "the archive arrived damaged" >&2; exit 1; fi
            rm -rf bundle.part && mkdir bundle.part && tar -C bundle.part --strip-components 1 -xf "incoming-$2" && echo "$2" >bundle.part/SHA256 || exit 1
            # A running comparison keeps the files it started from: the old folder is moved, not overwritten.
            if [ -e bundle ]; then mv bundle "bundle-$(cut -c1-12 bundle/SHA256)-$$" || exit 1; fi
            mv bundle.part bundle && rm -f "incoming-$2"' "$remote" "$sum" || die "$host: the bundle could not be unpacked in $remote"
    done
fi

# ---- the machine -------------------------------------------------------------------------------------------------
on_host 'cd "$1" && [ -x bundle/run ] || { echo "no bundle in $1: run without --skip-sync" >&2; exit 1; }
    bundle/run qsweep --version >&2' "$remote" || die "$host: qsweep does not start there (its MANIFEST names the C library it needs)"
on_host 'cd "$1" && shift && exec bundle/run qsweep doctor "$@"' "$remote" --device "$device" --output results ${checkpoint:+--model "$checkpoint"} >"$output/doctor.txt"
status=$?
grep -E -A1 '^(warn|fail)' "$output/doctor.txt" | grep -v '^--' >&2
[ $status -eq 0 ] || die "$host is not ready; the whole list is in $output/doctor.txt"

# ---- the comparison ----------------------------------------------------------------------------------------------
# One comparison there has a folder named after what it compares. `pid` holds the process and its start time, which
# together are never used twice; `status` is written when it ended.
id=$(printf '%s\n' "$samples" "$checkpoint" "$device" "${CODEC:-}" "${SHAPE:-}" | sha256sum | cut -c1-12)
state=$(on_host 'cd "$1" || exit 1
    run=runs/$2
    mkdir -p "$run" || exit 1
    started() { set -- $(cat "$run/pid" 2>/dev/null); [ -n "${2:-}" ] && [ "$(sed "s/.*) //" "/proc/$1/stat" 2>/dev/null | cut -d" " -f20)" = "$2" ]; }
    if started; then echo running; exit 0; fi
    cd bundle || exit 1
    if [ ! -e bin/python ] && python3 -c "import h5py, pandas, jinja2" 2>/dev/null; then printf "#!/bin/sh\nexec python3 \"\$@\"\n" >bin/python; chmod +x bin/python; fi
    run=../$run
    rm -f "$run/status" "$run/pid"
    [ -e "$run/log" ] && mv "$run/log" "$run/log-$(date +%s)"
    : >"$run/log"
    export SAMPLES=$3 DEVICE=$4 BUILD=bin CHECKPOINTS=../checkpoints OUTPUT=$run/results
    [ "$5" = - ] || export CHECKPOINT=$5
    [ "$6" = - ] || export CODEC=$6
    [ "$7" = - ] || export SHAPE=$7
    mkdir -p ../checkpoints
    # A session of its own: nothing that happens to this connection reaches it.
    setsid nohup sh -c "
        echo \$\$ \$(sed \"s/.*) //\" /proc/\$\$/stat | cut -d\" \" -f20) >$run/pid
        ./run bash jobs/compare.sh; echo \$? >$run/status.part; mv $run/status.part $run/status" >"$run/log" 2>&1 </dev/null &
    for i in 1 2 3 4 5 6 7 8 9 10; do [ -e "$run/pid" ] || sleep 0.2; done
    echo started' "$remote" "$id" "$samples" "$device" "${checkpoint:--}" "${CODEC:--}" "${SHAPE:--}") || die "$host: the comparison could not be started"
say "the comparison on $host is $state (log there: $remote/runs/$id/log)"

# Follow its log from where our copy of it ends; the connection may drop as often as it likes.
# A log of our own until it is whole: an ssh that outlived an earlier client may still be writing into its own.
rm -f "$output"/deploy.log.part-*
log=$output/deploy.log.part-$$
: >"$log"
follower=
trap '[ -z "$follower" ] || kill "$follower" 2>/dev/null; say "left; the comparison on $host goes on, the same command finds it again"; exit 130' INT TERM HUP
while :; do
    seen=$(stat -c %s "$log")
    connect sh -s -- "$remote" "$id" "$((seen + 1))" >>"$log" 2>"$output/.ssh-errors" <<'S' &
cd "$1/runs/$2" || exit 1
read -r pid start <pid
tail -c +"$3" -f --pid="$pid" log
[ -e status ] || sleep 1
S
    follower=$!
    tail -c +$((seen + 1)) -f --pid=$follower "$log" >&2
    wait $follower
    status=$?
    [ $status -eq 255 ] || break
    [ "$(stat -c %s "$log")" -eq "$seen" ] || tries=0
    again
done
trap - INT TERM HUP
rm -f "$output/.ssh-errors"
mv -f "$log" "$output/deploy.log"
log=$output/deploy.log
result=$(on_host 'cat "$1/runs/$2/status" 2>/dev/null || echo ended' "$remote" "$id")
case $result in
'' | *[!0-9]*) die "the comparison on $host ended without a status (was the machine restarted?); the same command goes on where it was" ;;
esac
[ "$result" -eq 0 ] || [ "$result" -eq 3 ] || { say "the comparison on $host failed with status $result; its log: $log"; exit "$result"; }

# ---- home --------------------------------------------------------------------------------------------------------
rm -rf "$output/.incoming"
while :; do
    mkdir -p "$output/.incoming"
    connect "cd '$remote/runs/$id/results' && tar -cf - sweep.h5 *.json \$(ls comparison_report.html 2>/dev/null)" | tar -C "$output/.incoming" -xf - 2>/dev/null
    status=("${PIPESTATUS[@]}")
    [ "${status[0]}" -eq 255 ] || break
    rm -rf "$output/.incoming"
    again
done
[ "${status[0]}" -eq 0 ] && [ "${status[1]}" -eq 0 ] || die "the results of $host could not be brought home: they are in $remote/runs/$id/results"
rm -f "$output/comparison_report.html"
mv -f "$output/.incoming"/* "$output/" && rmdir "$output/.incoming" || exit 1
if [ ! -e "$output/comparison_report.html" ]; then
    if [ -x "${BUILD:-build}/python" ]; then
        "${BUILD:-build}/python" analysis/report.py "$output/sweep.h5" -o "$output/comparison_report.html" || die "the report could not be made from $output/sweep.h5"
    else
        say "no Python with h5py and pandas there or here: jobs/setup.sh --for report, then build/python analysis/report.py $output/sweep.h5"
    fi
fi
say "in $output: $(cd "$output" && ls -d ./*.h5 ./*.json ./*.html 2>/dev/null | cut -c3- | tr '\n' ' ')"
exit "$result"
