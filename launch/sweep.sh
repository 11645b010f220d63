#!/usr/bin/env bash
# Runs all runs of a config's sweep(), here or on a SLURM cluster:
#   bash launch/sweep.sh local CONFIG WORKDIR [--config.KEY=VALUE...]
#   bash launch/sweep.sh slurm CONFIG WORKDIR [--config.KEY=VALUE...]
#   bash launch/sweep.sh print CONFIG WORKDIR [--config.KEY=VALUE...]
# `local` runs one after another, `slurm` submits a job array of
# launch/slurm.sbatch (with the same assumptions; not tested on a real
# cluster), `print` shows the command lines. The same command resumes.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 3 ] ||
  fail "usage: bash launch/sweep.sh local|slurm|print CONFIG WORKDIR [FLAG...]"
where=$1 config=$2
case $3 in /*) workdir=$3 ;; *) workdir=$PWD/$3 ;; esac
shift 3
environment requirements.txt
cd "$root"
sweep=("$python" -m gen3d.sweep --config="$config" --workdir="$workdir")
case $where in
  local) exec "${sweep[@]}" --run "$@" ;;
  print) exec "${sweep[@]}" "$@" ;;
  slurm)
    count=$("${sweep[@]}" --count "$@")
    exec sbatch --array="0-$((count - 1))" launch/slurm.sbatch \
      "$config" "$workdir" "$@"
    ;;
  *) fail "unknown place '$where'; choose local, slurm or print." ;;
esac
