#!/usr/bin/env bash
# The whole test suite, in the same environment as quickstart.sh's:
#   bash launch/test.sh [--parity] [PYTEST-ARGUMENT...]
# --parity also installs PyTorch and runs the comparisons with its models,
# which are skipped otherwise.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

files=(requirements.txt requirements-test.txt)
if [ "${1-}" = --parity ]; then
  files+=(requirements-parity.txt)
  shift
fi
environment "${files[@]}"

cd "$root"
lint=''
"$python" -m ruff check . || lint='ruff'
# Types, by [tool.pyrefly] in pyproject.toml.
"$python" -m pyrefly check --python-interpreter-path "$python" \
  --progress-bar=no || lint="${lint:+$lint and }pyrefly"
# More workers need more memory than a laptop has.
cores=$(getconf _NPROCESSORS_ONLN)
workers=$((cores < 4 ? cores : 4))
"$python" -m pytest --numprocesses="$workers" --dist=worksteal --durations=15 "$@" </dev/null
if [ -n "$lint" ]; then
  fail "the tests passed, but not the checks by $lint above them."
fi
