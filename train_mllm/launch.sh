#!/usr/bin/env bash
# `python -m train_mllm.train "$@"` on whatever there is: one process, one for each GPU of this machine, or of several (Slurm's variables,
# or NNODES, NODE_RANK, MASTER_ADDR given by hand). PROCESSES=N sets the processes per machine; --dry-run plans in one.
set -euo pipefail
processes=${PROCESSES:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}
nodes=${NNODES:-${SLURM_NNODES:-1}}
for flag in "$@"; do [ "$flag" != --dry-run ] || exec python -m train_mllm.train "$@"; done
[ $((processes * nodes)) -gt 1 ] || exec python -m train_mllm.train "$@"
address=${MASTER_ADDR:-localhost}
[ -z "${SLURM_JOB_NODELIST:-}" ] || address=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)}
exec torchrun --nproc-per-node "$processes" --nnodes "$nodes" --node-rank "${NODE_RANK:-${SLURM_NODEID:-0}}" \
  --master-addr "$address" --master-port "${MASTER_PORT:-29500}" -m train_mllm.train "$@"
