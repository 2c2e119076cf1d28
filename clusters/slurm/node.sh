#!/bin/bash
# Be one node of a job's Ray until SIGTERM: clusters/slurm/node.sh OPTIONS OF ray start. Called by run.sbatch.
set -eu
folder=$(mktemp -d /tmp/slurm-ray-XXXXXX) # of mode 0700, on this node's own disk; short, for Ray puts sockets there
read -r http_port grpc_port < <(python - <<'PYTHON'
import socket

sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in sockets))
PYTHON
)
export RAY_raylet_start_wait_time_s=300 # Ray's default of 30 is short where many nodes read one file system
# Ray chooses its other ports itself. SLURM_CPUS_ON_NODE: the cores of this job, not all of the machine's.
ray start --block --temp-dir="$folder" --num-cpus="$SLURM_CPUS_ON_NODE" \
  --dashboard-agent-listen-port="$http_port" --dashboard-agent-grpc-port="$grpc_port" "$@" &
trap 'kill -TERM $! || true' TERM
wait $! || true # returns at SIGTERM
wait $! || true
rm -rf "$folder"
