#!/bin/bash
# A SLURM of its own for the tests, on this machine alone, without systemd:
#   cluster.sh start DIR [NODES]   configure below DIR and start NODES nodes (2): n1, n2 ...; export SLURM_CONF=DIR/slurm.conf
#   cluster.sh status DIR          what sinfo says
#   cluster.sh crash DIR NODE      kill a node's daemon and everything that runs there, as a power cut would
#   cluster.sh revive DIR NODE     start that node again
#   cluster.sh stop DIR            end exactly what start began and remove DIR
set -euo pipefail
CPUS=4  # that every node pretends to have

fail() { echo "cluster.sh: $*" >&2; exit 1; }

install_slurm() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
  command -v apt-get >/dev/null || fail "SLURM is not installed, and only Debian and Ubuntu get it from here: install slurmctld, slurmd and munge"
  local root=()
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || fail "SLURM is not installed: run 'apt-get install slurm-wlm munge' as root"
    root=(sudo -n)
  fi
  local log
  log=$(mktemp)
  { "${root[@]}" apt-get update && "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install --yes --no-install-recommends slurm-wlm munge; } >"$log" 2>&1 \
    || fail "apt-get install slurm-wlm munge failed: $(tail -n 1 "$log") (all of it: $log)"
  rm -f "$log"
}

free_ports() {  # as many ports as asked for that nobody listens on
  python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))
PYTHON
}

configure() {
  local nodes=$1 ports user
  user=$(id -un)
  read -ra ports <<<"$(free_ports $((nodes + 1)))"
  cat >"$DIR/slurm.conf" <<CONF
ClusterName=lit-xai-tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
JobRequeue=1
KillWait=5
MinJobAge=300
SlurmdTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmdSpoolDir=$DIR/spool.%n
StateSaveLocation=$DIR/state
CONF
  local i
  for i in $(seq "$nodes"); do
    mkdir -p "$DIR/spool.n$i"
    echo "NodeName=n$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${ports[$i]} CPUs=$CPUS Boards=1" \
      "SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=16000 State=UNKNOWN" >>"$DIR/slurm.conf"
  done
  echo "PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$DIR/slurm.conf"
}

start_munge() {
  ( umask 077; dd if=/dev/urandom of="$DIR/munge.key" bs=128 count=1 status=none )
  munged --force --num-threads=2 --key-file="$DIR/munge.key" --socket="$DIR/run/munge.socket" \
    --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/run/munged.seed"
}

start_node() { slurmd -N "$1"; }

wait_until() {  # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.2
  done
}

all_idle() { [ "$(sinfo --noheader --Node --format=%t 2>/dev/null | grep -cx idle)" = "$1" ]; }
no_jobs() { [ -z "$(squeue --noheader 2>/dev/null)" ]; }
gone() { local p; for p in "$@"; do if alive "$p"; then return 1; fi; done; }
alive() { [ -n "$1" ] && [ -e "/proc/$1" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }

pid_of() { cat "$DIR/run/$1.pid" 2>/dev/null || true; }

children_of() {  # the processes below these
  local children
  children=$(ps -o pid= --ppid "$(IFS=,; echo "$*")" | tr -d ' ') || return 0
  # shellcheck disable=SC2086
  [ -z "$children" ] || { echo "$children"; children_of $children; }
}

on_node() {  # a node's daemon, its step daemons and what they run; both daemons hold the node's log open
  local link pid own=()
  for link in $(find /proc/[0-9]*/fd -lname "$DIR/log/slurmd.$1.log" 2>/dev/null || true); do
    pid=$(cut -d/ -f3 <<<"$link")
    grep -qE '^slurm(d|stepd)$' "/proc/$pid/comm" 2>/dev/null && own+=("$pid")
  done
  [ ${#own[@]} = 0 ] || { echo "${own[@]}"; children_of "${own[@]}"; }
}

crash() {
  local pids
  pids=$(on_node "$1")
  # shellcheck disable=SC2086
  [ -z "$pids" ] || { kill -KILL $pids 2>/dev/null || true; wait_until 10 gone $pids; }
  rm -f "$DIR/run/slurmd.$1.pid"
}

start() {
  install_slurm
  [ ! -e "$DIR/slurm.conf" ] || fail "$DIR holds a cluster already: stop it first"
  mkdir -p "$DIR"/{run,log,state}
  chmod 755 "$DIR/run"
  configure "$1"
  start_munge
  slurmctld -i
  local i
  for i in $(seq "$1"); do start_node "n$i"; done
  wait_until 60 all_idle "$1" || { tail -n 5 "$DIR"/log/*.log >&2; stop; fail "the nodes did not come up"; }
}

stop() {
  [ -e "$DIR/slurm.conf" ] || return 0
  if alive "$(pid_of slurmctld)"; then
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    wait_until 15 no_jobs || true
  fi
  local node daemon pid
  for node in $(sed -n 's/^NodeName=\([^ ]*\).*/\1/p' "$DIR/slurm.conf"); do crash "$node"; done
  for daemon in slurmctld munged; do
    pid=$(pid_of "$daemon")
    [ -z "$pid" ] || { kill "$pid" 2>/dev/null || true; wait_until 15 gone "$pid" || kill -KILL "$pid"; }
  done
  rm -rf "$DIR"
}

[ $# -ge 2 ] || { sed -n '2,7s/^# \?//p' "$0"; exit 2; }
DIR=$(realpath -m "$2")
export SLURM_CONF=$DIR/slurm.conf
case $1 in
  start) start "${3:-2}" ;;
  status) sinfo --Node --long ;;
  crash) crash "$3" ;;
  revive) start_node "$3" ;;
  stop) stop ;;
  *) fail "$1 is not start, status, crash, revive or stop" ;;
esac
