#!/bin/bash
# Two Slurm nodes on one machine, each in namespaces of its own (processes, network, host name), then a command:
#   unshare --net --pid --mount --uts --ipc --fork --mount-proc --kill-child bash slurm_nodes.sh FOLDER COMMAND...
# `ray stop` ends every Ray process that it can see: here it sees those of one node.
set -eu
folder=$1; shift
mkdir -p "$folder"/{state,log}
ip link set lo up
ip link add bridge type bridge
ip addr add 10.77.0.1/24 dev bridge
ip link set bridge up
printf '127.0.0.1 localhost\n10.77.0.1 n0\n10.77.0.2 n1\n10.77.0.3 n2\n' > "$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
hostname n0
dd if=/dev/urandom of="$folder/key" bs=1024 count=1 2>/dev/null
chmod 600 "$folder/key"
munged --force --key-file="$folder/key" --socket="$folder/munge" --pid-file="$folder/munge.pid" \
  --log-file="$folder/log/munge" --seed-file="$folder/seed"
cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=n0
SlurmUser=root
AuthInfo=socket=$folder/munge,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd.%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
KillWait=30
SchedulerParameters=defer_batch,requeue_setup_env_fail
NodeName=n1 NodeAddr=10.77.0.2 CPUs=96 RealMemory=2000000 Gres=gpu:8 State=UNKNOWN
NodeName=n2 NodeAddr=10.77.0.3 CPUs=96 RealMemory=2000000 Gres=gpu:8 State=UNKNOWN
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
touch "$folder"/gpu{0..7}
echo "Name=gpu File=$folder/gpu[0-7]" > "$folder/gres.conf"
export SLURM_CONF="$folder/slurm.conf"
slurmctld
for number in 1 2; do
  mkdir -p "$folder/spool.n$number" "$folder/tmp.n$number" "$folder/shm.n$number"
  unshare --net --pid --mount --uts --ipc --fork --mount-proc --kill-child bash -c "
    hostname n$number; mount --bind '$folder/tmp.n$number' /tmp; mount -t tmpfs tmpfs /dev/shm
    while ! ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done
    ip addr add 10.77.0.$((number + 1))/24 dev eth0; ip link set eth0 up; ip link set lo up
    slurmd -D -N n$number & wait" > "$folder/log/node.n$number" 2>&1 &
  sleep 0.3
  child=$(pgrep -P $! bash || pgrep -P $! slurmd)
  ip link add "veth$number" type veth peer name eth0 netns "$child"
  ip link set "veth$number" master bridge up
done
for _ in $(seq 20); do
  [ "$(sinfo -h -t idle -o %D | head -n 1)" = 2 ] && break
  sleep 0.5
done
sinfo -N -l
"$@"
