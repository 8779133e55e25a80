#!/usr/bin/env bash
# SLURM: one process on each GPU of several machines, requeued when its time is over.
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/cityscapes.py --workdir=/shared/runs/cityscapes
#SBATCH --job-name=ggcf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ggcf-%j.log
#SBATCH --signal=B:TERM@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

# Five minutes before the end of its time SLURM sends SIGTERM to this script, which hands it on: the
# run saves a checkpoint and ends. The job goes back into the queue under its own number and resumes.
stopped=''
# shellcheck disable=SC2317 # the trap calls it
hand_on() {
  stopped=1
  kill -TERM "$step" 2>/dev/null || true
}
trap hand_on TERM

# A process that is lost ends the others; main.py tells which one it was.
srun --kill-on-bad-exit=1 "${PYTHON:-python}" main.py "$@" &
step=$!
code=0
wait "$step" || code=$?
if [[ -n $stopped ]]; then # the signal ended the waiting, not the step
  code=0
  wait "$step" || code=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
