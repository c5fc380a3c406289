#!/usr/bin/env bash
# netns.sh — hosts for Open MPI on one machine: network namespaces on a bridge, each with its own host name and /dev/shm.
#
#   netns.sh up N           make host1 … hostN (10.99.0.K); the caller's mount namespace keeps them
#   netns.sh run HOST CMD…  run a command there; mpirun takes this as its plm_rsh_agent, in place of ssh
#   netns.sh cut HOST       take its cable out
#   netns.sh pids HOST      processes there
set -eu
case $1 in
up)
    mkdir -p /run/netns
    mount -t tmpfs tmpfs /run/netns # names of this test alone, gone with the mount namespace
    ip netns add bridge
    ip -n bridge link add br0 type bridge
    ip -n bridge link set br0 up
    for k in $(seq "$2"); do
        ip netns add "host$k"
        ip -n "host$k" link set lo up
        ip link add "veth$k" netns "host$k" type veth peer name "port$k" netns bridge
        ip -n bridge link set "port$k" master br0 up
        ip -n "host$k" addr add "10.99.0.$k/24" dev "veth$k"
        ip -n "host$k" link set "veth$k" up
    done
    ;;
run)
    host=$2
    shift 2
    exec ip netns exec "$host" unshare --uts --mount bash -c \
        'hostname "$0"; mount -t tmpfs tmpfs /dev/shm; exec /bin/sh -c "$1"' "$host" "$*"
    ;;
cut) ip -n "$2" link set "veth${2#host}" down ;;
pids) ip netns pids "$2" ;;
*) echo "usage: netns.sh up N | run HOST CMD | cut HOST | pids HOST" >&2; exit 2 ;;
esac
