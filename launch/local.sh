#!/usr/bin/env bash
# Trains on this machine, on all its cores or accelerators:
#   bash launch/local.sh CONFIG WORKDIR [--config.KEY=VALUE...]
# The same command resumes; Ctrl-C saves first. Makes .venv on the first call.
# For an NVIDIA GPU, first: .venv/bin/pip install 'jax[cuda13]'.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 2 ] || fail "usage: bash launch/local.sh CONFIG WORKDIR [FLAG...]"
environment requirements.txt
config=$1
# From where the user stands, not from the repository.
case $2 in /*) workdir=$2 ;; *) workdir=$PWD/$2 ;; esac
shift 2
cd "$root"
exec "$python" -m gen3d.train --config="$config" --workdir="$workdir" "$@"
