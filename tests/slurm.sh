#!/usr/bin/env bash
# A Slurm of one node on this machine: `tests/slurm.sh start FOLDER`, then SLURM_CONF=FOLDER/slurm.conf, and `stop FOLDER`.
# Needs root and Debian's packages slurm-wlm and munge.
set -eu
top=$(realpath -m "$2")
if [ "$1" = stop ]; then
    for daemon in slurmctld slurmd munged; do kill "$(cat "$top/$daemon.pid")" || true; done
    exit
fi
mkdir -p "$top/munge" "$top/state" "$top/spool"
chmod 755 "$top" && chmod 700 "$top/munge"
head -c 128 /dev/urandom > "$top/munge/key" && chmod 400 "$top/munge/key"
host=$(hostname -s)
cat > "$top/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$top/munged.socket
StateSaveLocation=$top/state
SlurmdSpoolDir=$top/spool
SlurmctldPidFile=$top/slurmctld.pid
SlurmdPidFile=$top/slurmd.pid
SlurmctldLogFile=$top/slurmctld.log
SlurmdLogFile=$top/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=5
ReturnToService=2
NodeName=$host CPUs=$(nproc --all)
PartitionName=all Nodes=ALL Default=YES
END
munged --force --key-file "$top/munge/key" --seed-file "$top/munge/seed" --log-file "$top/munge/log" \
    --socket "$top/munged.socket" --pid-file "$top/munged.pid"
export SLURM_CONF=$top/slurm.conf
slurmctld
slurmd
until sinfo --noheader --format=%t | grep -q idle; do sleep 0.5; done
