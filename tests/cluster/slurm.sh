#!/usr/bin/env bash
# slurm.sh — a private Slurm cluster on loopback, without systemd: munged, slurmctld and a slurmd per node.
#
#   slurm.sh up DIR NODES      start it and wait until every node is idle; then SLURM_CONF=DIR/slurm.conf
#   slurm.sh node DIR nK       start node K (again, after it was lost)
#   slurm.sh down DIR          cancel the jobs, end the daemons
#
# A node is a bash of its own process, mount and host-name namespace with a slurmd below it: killing the process whose number is
# in DIR/run/nK.pid takes the node with everything on it, as a power cut does. Needs root. The port comes from the
# caller (SLURM_BASE_PORT), so that several clusters can stand side by side.
set -eu
action=$1 dir=$2
cpus=8 port=${SLURM_BASE_PORT:-17817}
export SLURM_CONF=$dir/slurm.conf

node() { # node nK
    mkdir -p "$dir/spool/$1"
    unshare --mount --uts --pid --fork --kill-child=KILL --mount-proc bash -c '
        hostname "$1"
        mount -t tmpfs tmpfs /dev/shm
        mount -t tmpfs tmpfs "$2/nodetmp"
        slurmd -D -N "$1" -f "$2/slurm.conf"; exit $?' _ "$1" "$dir" >>"$dir/log/slurmd-$1.out" 2>&1 </dev/null &
    echo $! >"$dir/run/$1.pid"
}

# Two GPUs a node that are only names: slurmd wants character devices, these are /dev/null's twins.
gpus() {
    mkdir -p "$dir/gpu"
    mknod "$dir/gpu/nvidia0" c 1 3 2>/dev/null && mknod "$dir/gpu/nvidia1" c 1 3 2>/dev/null
}

configure() { # configure NODES
    local host k gres=
    host=$(hostname -s)
    if gpus; then
        gres=" Gres=gpu:2"
        printf 'AutoDetect=off\nNodeName=n[1-%s] Name=gpu Count=2 File=%s/gpu/nvidia[0-1]\n' "$1" "$dir" >"$dir/gres.conf"
    fi
    cat >"$dir/slurm.conf" <<X
ClusterName=qsweep
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
MailProg=/bin/true
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmdSpoolDir=$dir/spool/%n
StateSaveLocation=$dir/state
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
PropagateResourceLimits=NONE
JobRequeue=1
KillWait=5
MinJobAge=3600
InactiveLimit=0
MessageTimeout=5
SlurmctldTimeout=30
SlurmdTimeout=8
BatchStartTimeout=10
CompleteWait=0
EpilogMsgTime=1
PlugStackConfig=$dir/plugstack.conf
${gres:+GresTypes=gpu}
X
    for k in $(seq "$1"); do
        echo "NodeName=n$k NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + k)) CPUs=$cpus RealMemory=2000$gres State=UNKNOWN"
    done >>"$dir/slurm.conf"
    echo "PartitionName=all Nodes=n[1-$1] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO" >>"$dir/slurm.conf"
    echo "PMIxCliTmpDirBase=$dir/nodetmp" >"$dir/mpi.conf" # /tmp is the same for all nodes here, and would clash
    : >"$dir/plugstack.conf"
}

up() { # up NODES
    local k idle
    mkdir -p "$dir"/{munge,run,state,log,spool,nodetmp}
    chmod 755 "$dir" "$dir/run"
    chmod 700 "$dir/munge"
    head -c 128 /dev/urandom >"$dir/munge/key"
    chmod 400 "$dir/munge/key"
    configure "$1"
    munged --key-file="$dir/munge/key" --socket="$dir/run/munge.sock" --pid-file="$dir/run/munged.pid" --foreground \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed" >"$dir/log/munged.out" 2>&1 </dev/null &
    echo $! >"$dir/run/munged-test.pid"
    for k in $(seq 100); do [ -S "$dir/run/munge.sock" ] && break; sleep 0.05; done
    slurmctld -D -i -f "$SLURM_CONF" >"$dir/log/slurmctld.out" 2>&1 </dev/null &
    echo $! >"$dir/run/slurmctld-test.pid"
    for k in $(seq "$1"); do node "n$k"; done
    for k in $(seq 300); do
        idle=$(timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -cx idle || true)
        [ "$idle" = "$1" ] && return 0
        sleep 0.1
    done
    tail -n 5 "$dir"/log/*.log "$dir"/log/*.out >&2
    echo "slurm.sh: the cluster did not come up" >&2
    return 1
}

down() {
    local pids k
    timeout 5 scancel -f $(timeout 5 squeue -h -o %A 2>/dev/null | sort -u) 2>/dev/null || true
    for k in $(seq 20); do [ -z "$(timeout 2 squeue -h 2>/dev/null)" ] && break; sleep 0.1; done
    pids=$(cat "$dir"/run/n*.pid "$dir"/run/slurmctld-test.pid "$dir"/run/munged-test.pid 2>/dev/null || true)
    kill $pids 2>/dev/null || true
    for k in $(seq 30); do kill -0 $pids 2>/dev/null || break; sleep 0.1; done
    kill -9 $pids 2>/dev/null || true
}

case $action in
up) up "$3" ;;
node) node "$3" ;;
down) down ;;
*) echo "usage: slurm.sh up DIR NODES | node DIR nK | down DIR" >&2; exit 2 ;;
esac
