#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice that exists:
#   TPU=my-v5e-16 ZONE=us-west4-a bash launch/tpu_pod.sh CONFIG WORKDIR [FLAG...]
#
# Assumes: gcloud is installed and logged in here; the slice was made by
# `gcloud compute tpus tpu-vm create`; on every worker the repository lies in
# ~/gen3d, or where DIR says, with a .venv that has requirements.txt and
# 'jax[tpu]'; WORKDIR is on a file system that all workers share (Filestore, or
# a bucket mounted with gcsfuse: a gs:// address will not do).
# Not tested on a TPU.
set -euo pipefail
if [ $# -lt 2 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  echo "usage: TPU=NAME ZONE=ZONE bash launch/tpu_pod.sh CONFIG WORKDIR" \
    "[FLAG...]" >&2
  exit 1
fi
config=$1 workdir=$2
shift 2
# Quoted twice, because the shell of the workers parses it again.
train=$(printf '%q ' .venv/bin/python -m gen3d.train \
  --config="$config" --workdir="$workdir" "$@")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ${DIR:-gen3d} && GEN3D_DISTRIBUTED=1 $train"
