#!/usr/bin/env bash
# A TPU pod slice of spot machines: asked for as a queued resource, and again after each preemption,
# until the run has ended.
#
#   PROJECT=p ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite \
#     launch/tpu.sh NAME --config=configs/cityscapes.py --workdir=gs://BUCKET/runs/cityscapes
#
# SETUP is what every worker does once; by default it fetches the package. Data lie in the bucket:
# --config.data.data_dir=gs://BUCKET/data.
set -euo pipefail

name=$1
shift
place=(--project="$PROJECT" --zone="$ZONE" --quiet)
source=${SOURCE:?address of the repository that the workers clone}
setup=${SETUP:-"test -d ggcf_jax || git clone -q $source ggcf_jax; cd ggcf_jax && pip install -q -e '.[tpu,gcs]'"}
arguments=$(printf ' %q' "$@")

queued() { gcloud compute tpus queued-resources "$@" "${place[@]}"; }
state() { queued describe "$name" --format='value(state.state)' 2>/dev/null || echo NONE; }
on_workers() { gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --command="$1"; }

while true; do
  case $(state) in
    NONE)
      queued create "$name" --node-id="$name" --accelerator-type="$TYPE" \
        --runtime-version="$RUNTIME" --spot
      ;;
    ACTIVE)
      # Process 0 alone prints; the workers find each other by what the TPU tells them.
      if on_workers "$setup" && on_workers "cd ggcf_jax && python3 main.py --platform=tpu$arguments"; then
        queued delete "$name" --force
        exit 0
      elif [[ $(state) == ACTIVE ]]; then
        echo "the run failed on machines that are still there; see above" >&2
        exit 1
      fi
      ;;
    SUSPENDED | FAILED) # preempted: what is left of it has to go before it can be asked for again
      queued delete "$name" --force
      ;;
  esac
  sleep "${PAUSE:-30}"
done
