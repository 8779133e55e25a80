#!/usr/bin/env bash
# All GPUs of one machine, one process. Started again where it was when the machine or the process
# comes back: for the @reboot line of a crontab, or a service that restarts.
#
#   launch/gpus.sh --config=configs/cityscapes.py --workdir=gs://BUCKET/runs/cityscapes
set -euo pipefail
cd "$(dirname "$0")/.."

# Nothing else computes on these GPUs.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# Gradients are summed while others are still computed.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"

exec "${PYTHON:-python}" main.py --platform=gpu "$@"
