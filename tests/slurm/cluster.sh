#!/usr/bin/env bash
# A real SLURM of two nodes on this one machine, for the tests. Needs root on Debian.
#   cluster.sh install  install what is missing
#   cluster.sh start    install what is missing, start afresh, wait until the nodes take jobs
#   cluster.sh stop     cancel the jobs, end the daemons
set -euo pipefail
home=/var/lib/slurm-for-tests
conf=/etc/slurm/slurm.conf
mark="# SLURM for tests, written by tests/slurm/cluster.sh"
nodes=(t1 t2)

fail() { echo "error: $*" >&2; exit 1; }

# A pid file's process, if it lives and is the program.
process() { # PID_FILE PROGRAM
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] &&
        ! grep -qs '^State:.*Z' "/proc/$pid/status" && echo "$pid"
}

await() { # WHAT COMMAND...
    local what=$1
    shift
    for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
    tail -n 20 "$home"/log/* >&2 || true
    fail "no $what within 30 s"
}

install_packages() {
    local missing=0
    for program in slurmctld slurmd srun munged; do
        command -v "$program" >/dev/null || missing=1
    done
    [ "$missing" = 1 ] || return 0
    echo "installing SLURM (13 MB) ..."
    local install=(apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge)
    export DEBIAN_FRONTEND=noninteractive
    "${install[@]}" >"$home/log/apt" 2>&1 ||
        { apt-get update -q && "${install[@]}"; } >>"$home/log/apt" 2>&1 ||
        { tail -n 20 "$home/log/apt" >&2; fail "SLURM cannot be installed"; }
}

write_conf() {
    if [ -e "$conf" ] && ! grep -qF "$mark" "$conf"; then
        fail "$conf belongs to another SLURM; these tests are for a machine without one"
    fi
    mkdir -p /etc/slurm
    cat >"$conf" <<END
$mark
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits so many seconds before it starts again.
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny,DisableIPv6
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,bf_min_age_reserve=0
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool/%n
SlurmctldPidFile=$home/run/slurmctld.pid
SlurmdPidFile=$home/run/slurmd-%n.pid
SlurmctldLogFile=$home/log/slurmctld
SlurmdLogFile=$home/log/slurmd-%n
KillWait=20
MinJobAge=86400
EnforcePartLimits=ALL
END
    local port=17001
    for node in "${nodes[@]}"; do
        echo "NodeName=$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port CPUs=4" \
            "RealMemory=65536 State=UNKNOWN" >>"$conf"
        port=$((port + 1))
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$conf"
}

munge_answers() { munge -n </dev/null | unmunge; }

start_munge() {
    munge_answers >/dev/null 2>&1 && return
    install -d -o munge -g munge -m 0755 /run/munge
    rm -f /run/munge/munge.socket.2 /run/munge/munge.socket.2.lock /run/munge/munged.pid
    setpriv --reuid munge --regid munge --clear-groups munged </dev/null >>"$home/log/munged" 2>&1
    await "answer of munge" munge_answers
}

nodes_idle() { [ "$(sinfo -h -N -o %T | grep -c '^idle$')" = "${#nodes[@]}" ]; }

start() {
    mkdir -p "$home"/{state,spool,log,run}
    install_packages
    stop
    rm -rf "$home"/state/* "$home"/spool/*
    write_conf
    start_munge
    setsid slurmctld </dev/null >>"$home/log/slurmctld.out" 2>&1
    await "answer of slurmctld" eval "scontrol ping | grep -q 'is UP'"
    for node in "${nodes[@]}"; do
        mkdir -p "$home/spool/$node"
        setsid slurmd -N "$node" </dev/null >>"$home/log/slurmd-$node.out" 2>&1
    done
    await "idle nodes" nodes_idle
    sinfo -N
}

no_jobs() { [ -z "$(squeue -h)" ]; }

stop() {
    if process "$home/run/slurmctld.pid" slurmctld >/dev/null; then
        # Jobs first: a node that ends would leave their processes behind.
        squeue -h -o %A | xargs -r scancel
        await "end of the jobs" no_jobs
    fi
    local file program pid
    for file in "$home"/run/*.pid /run/munge/munged.pid; do
        program=$(basename "$file" .pid)
        pid=$(process "$file" "${program%%-*}") || continue
        kill "$pid"
        await "end of $program" eval "! process '$file' '${program%%-*}'"
    done
}

[ "$(id -u)" = 0 ] || fail "a SLURM for tests needs root"
unset "${!SLURM_@}" "${!SBATCH_@}" 2>/dev/null || true
case ${1:-} in
    install) mkdir -p "$home/log" && install_packages ;;
    start) start ;;
    stop) stop ;;
    *) fail "cluster.sh install, start or stop" ;;
esac
