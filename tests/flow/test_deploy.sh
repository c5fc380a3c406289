#!/usr/bin/env bash
# deploy.sh against a real ssh server of our own on 127.0.0.1: it copies, looks, measures and brings home; a connection
# that dies and a client that is killed cost nothing; a half-sent archive is gone on with; nothing else there is ended.
set -u
build=$(cd "${QSWEEP_BUILD:-build}" && pwd)
cd "$(dirname "$0")/../.." || exit 1
dir=$(mktemp -d) || exit 1
sshd_pid=
cleanup() {
    [ -n "$sshd_pid" ] && kill "$sshd_pid" 2>/dev/null
    [ -n "${bystander:-}" ] && kill "$bystander" 2>/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT
n=0
check() { # check NAME COMMAND...
    local name=$1
    shift
    n=$((n + 1))
    if "$@" >"$dir/check" 2>&1; then echo "ok $n - $name"; else echo "not ok $n - $name"; tail -n 30 "$dir/check" | sed 's/^/# /'; fi
}
skip() { echo "ok $((n + 1)) - deploy over ssh # skip $1"; echo "1..$((n + 1))"; exit 0; }
has() { grep -qE -- "$2" "$1" || { cat "$1"; return 1; }; }
refuses() { # refuses STATUS WORD ARGS...
    local want=$1 word=$2 out status
    shift 2
    out=$(jobs/deploy.sh "$@" 2>&1 >/dev/null)
    status=$?
    echo "status $status: $out"
    [ $status -eq "$want" ] && grep -q -- "$word" <<<"$out"
}
check "an unknown option is refused" refuses 2 '--fast' --fast
check "a number of samples that is none is refused" refuses 2 'samples' --samples ten
check "a path that a shell would read otherwise is refused" env REMOTE_PATH='/tmp/a;b' bash -c '! jobs/deploy.sh host 2>&1 | (! grep -q REMOTE_PATH)'
check "a host that looks like an option is refused" refuses 2 'host' --host -oProxyCommand=true

sshd=$(command -v sshd || ls /usr/sbin/sshd 2>/dev/null)
[ -n "$sshd" ] && command -v ssh >/dev/null || skip "no ssh server here (package openssh-server)"
command -v xz >/dev/null || skip "no xz here"
[ "$(id -u)" -ne 0 ] || mkdir -p /run/sshd || skip "no /run/sshd for the ssh server"
ssh-keygen -q -t ed25519 -N '' -f "$dir/host" && ssh-keygen -q -t ed25519 -N '' -f "$dir/key" && cp "$dir/key.pub" "$dir/authorized"
chmod 700 "$dir"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$dir/sshd_config" <<C
Port $port
ListenAddress 127.0.0.1
HostKey $dir/host
AuthorizedKeysFile $dir/authorized
PidFile $dir/sshd.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
C
cat >"$dir/ssh_config" <<C
Host bare
    HostName 127.0.0.1
    Port $port
    User $(id -un)
    IdentityFile $dir/key
    IdentitiesOnly yes
    UserKnownHostsFile $dir/known
    StrictHostKeyChecking no
    LogLevel ERROR
C
start_sshd() { "$sshd" -D -e -f "$dir/sshd_config" >>"$dir/sshd.log" 2>&1 & sshd_pid=$!; }
start_sshd
for _ in $(seq 50); do ssh -F "$dir/ssh_config" -o BatchMode=yes bare true 2>"$dir/err" && break; sleep 0.1; done
ssh -F "$dir/ssh_config" -o BatchMode=yes bare true 2>"$dir/err" || skip "the ssh server does not let us in: $(tail -n 1 "$dir/sshd.log" "$dir/err" | tr '\n' ' ')"

XZ=-1 jobs/bundle.sh "$build" 0.0.0 "$dir" 2>"$dir/err" || { cat "$dir/err"; echo "Bail out! no bundle"; exit 1; }
export SSH="ssh -F $dir/ssh_config" REMOTE_PATH=$dir/remote BUNDLE=$dir/qsweep-bundle-0.0.0.tar.xz RETRY_SECONDS=1 RETRIES=20
export CODEC=off SHAPE=s1-nano BUILD=$build
sum=$(sha256sum <"$BUNDLE" | cut -d' ' -f1)
deploy() { jobs/deploy.sh bare --device cpu --samples 2 --output "$dir/home" "$@"; }
sleep 600 & bystander=$!

check "--skip-sync without a bundle there says what to do" bash -c '! jobs/deploy.sh bare --device cpu --skip-sync --output "$1/none" 2>&1 | (! grep -q "without --skip-sync")' - "$dir"
mkdir -p "$REMOTE_PATH"
head -c 1000000 "$BUNDLE" >"$REMOTE_PATH/incoming-$sum"

# The client is killed as soon as the comparison runs.
deploy >"$dir/first" 2>&1 &
client=$!
for _ in $(seq 300); do grep -q 'bf16' "$dir/first" && break; kill -0 $client 2>/dev/null || break; sleep 0.1; done
kill -KILL $client 2>/dev/null
wait $client 2>/dev/null
check "a half-sent archive is gone on with, not sent again" has "$dir/first" "sending .*: $((($(stat -c %s "$BUNDLE") - 1000000) / 1000)) of"
check "nothing half-sent is left" [ -z "$(ls "$REMOTE_PATH" | grep incoming)" ]
run=$(ls -d "$REMOTE_PATH"/runs/*)
read -r pid _ <"$run/pid"
check "the comparison goes on when the client is killed" kill -0 "$pid"

# A second client finds it; its connections are cut, and for a while nobody answers.
deploy >"$dir/second" 2>&1 &
client=$!
for _ in $(seq 100); do grep -q 'is running' "$dir/second" && break; sleep 0.1; done
sleep 0.5
for session in $(pgrep -P "$sshd_pid"); do kill "$session"; pkill -P "$session" 2>/dev/null; done
kill "$sshd_pid"; wait "$sshd_pid" 2>/dev/null
sleep 1.5
start_sshd
wait $client
status=$?
check "the second client finds the running comparison" has "$dir/second" 'comparison on bare is running'
check "the broken connection is told and taken up again" has "$dir/second" 'connection to bare is gone; trying again'
check "the whole ends well" [ $status -eq 0 ]
check "the log came home whole and once" cmp "$dir/home/deploy.log" "$run/log"
check "only one comparison was started" [ "$(ls "$run" | grep -c '^log')" -eq 1 ]
check "the results are home and are those there" cmp "$dir/home/sweep.h5" "$run/results/sweep.h5"
check "both result files of the reference's keys are home" bash -c 'python3 -c "import json, sys; [json.load(open(f)) for f in sys.argv[1:]]" "$1"/bf16_results.json "$1"/int8_results.json' - "$dir/home"
"$build/qsweep" show "$dir/home/sweep.h5" -o jsonl >"$dir/show" 2>"$dir/err"
check "both cells are ok" [ "$(grep -c '"status": *"ok"' "$dir/show")" -eq 2 ]
if [ -x "$build/python" ]; then
    check "the report is home" grep -q '</html>' "$dir/home/comparison_report.html"
else
    echo "ok $((n += 1)) - the report is home # skip no $build/python here"
fi
check "what doctor saw is home" has "$dir/home/doctor.txt" '^ok +cpu'
check "a process that is not ours still runs" kill -0 $bystander

# Once more: nothing to send, nothing to measure.
deploy --skip-sync >"$dir/third" 2>&1
check "the same command again measures nothing anew" has "$dir/third" '2 of 2 cells ok|already|resum'
check "it sends nothing" bash -c '! grep -q sending "$1"' - "$dir/third"
check "doctor's refusal stops it before anything runs" bash -c '! env SHAPE=s1-mini jobs/deploy.sh bare --device cpu --checkpoint /nowhere/at-all --output "$1/none" 2>&1 | (! grep -q "not ready") && [ "$(ls "$2" | wc -l)" -eq 1 ]' - "$dir" "$REMOTE_PATH/runs"
RETRIES=1 SSH="ssh -F $dir/ssh_config -p 1" check "a host that does not answer is given up with a clear line" refuses 1 'no connection to bare' bare --device cpu --output "$dir/none"
echo "1..$n"
