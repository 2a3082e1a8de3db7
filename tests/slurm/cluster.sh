#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, for the tests; needs root on Debian.
#   tests/slurm/cluster.sh install        SLURM and munge from Debian's packages
#   tests/slurm/cluster.sh start FOLDER   start it; prints the variable to export
#   tests/slurm/cluster.sh stop FOLDER    stop it, by the process ids in FOLDER
# FOLDER holds its settings, state, logs and process ids, and no other cluster is touched.
set -euo pipefail

daemons=(slurmctld slurmd munged)

install() {
    if command -v slurmctld slurmd sbatch munged >/dev/null; then return; fi
    local lock=(-o DPkg::Lock::Timeout=60)
    apt-get "${lock[@]}" update -qq
    DEBIAN_FRONTEND=noninteractive apt-get "${lock[@]}" install -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge
}

configure() {
    local folder=$1 machine node cores memory port
    # As slurmd itself sees the machine: it drains a node that promises more.
    machine=$(slurmd -C)
    node=$(sed -n 's/^NodeName=\([^ ]*\).*/\1/p' <<<"$machine")
    cores=$(sed -n 's/.* CPUs=\([0-9]*\).*/\1/p' <<<"$machine")
    memory=$(sed -n 's/.* RealMemory=\([0-9]*\).*/\1/p' <<<"$machine")
    # A port of its own for each folder, so that two clusters can run side by side.
    port=$((20000 + $(cksum <<<"$folder" | cut -d' ' -f1) % 20000))
    mkdir -p "$folder"/{state,spool,munge}
    chmod 700 "$folder/munge"
    chmod 755 "$folder"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge/key"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
KillWait=10
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
}

running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

wait_for() { # wait_for WHAT COMMAND...
    local what=$1
    shift
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "SLURM's test cluster: $what did not come up" >&2
    return 1
}

node_is_idle() { sinfo --noheader --format=%T | grep -q idle; }

start() {
    local folder
    folder=$(realpath -m "$1")
    configure "$folder"
    export SLURM_CONF=$folder/slurm.conf
    munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" \
        --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" \
        --seed-file "$folder/munge/seed"
    wait_for munged test -S "$folder/munge/socket"
    slurmctld -c
    wait_for slurmctld scontrol ping
    slurmd -c
    wait_for slurmd node_is_idle || { tail -n 20 "$folder"/slurm*.log >&2; return 1; }
    echo "export SLURM_CONF=$folder/slurm.conf"
}

stop() {
    local folder daemon file
    folder=$(realpath -m "$1")
    export SLURM_CONF=$folder/slurm.conf
    if running "$folder/slurmctld.pid"; then
        # Tasks would outlive the daemons.
        scancel --user root || true
        for _ in $(seq 200); do [ -n "$(squeue --noheader)" ] || break; sleep 0.1; done
    fi
    for daemon in "${daemons[@]}"; do
        file=$folder/$daemon.pid
        running "$file" || continue
        kill "$(cat "$file")"
        for _ in $(seq 100); do running "$file" || break; sleep 0.1; done
        if running "$file"; then kill -KILL "$(cat "$file")"; fi
    done
}

case ${1:-} in
    install) install ;;
    start | stop) "$1" "${2:?the FOLDER of the cluster is missing}" ;;
    *) sed -n '2,6s/^# //p' "$0"; exit 2 ;;
esac
