# Sourced by the other scripts: a Python environment in .venv, updated from the
# requirements files.
#   environment FILE...   creates .venv if it is missing and installs the files
#                         that have changed since the last time
# Sets root (the repository) and python (the environment's).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

fail() {
  echo "gen3d: $*" >&2
  exit 1
}

environment() {
  # An incomplete environment, or one of a Python that was removed, fails this
  # check and is created again.
  if ! new_enough "$python" || ! "$python" -m pip --version >/dev/null 2>&1
  then
    make_environment
  fi
  local file
  for file in "$@"; do
    install_changed "$file"
  done
}

make_environment() {
  local base
  base=$(find_python)
  echo "Making .venv with $("$base" --version 2>&1)." >&2
  if ! "$base" -m venv --clear "$root/.venv" >&2; then
    rm -rf "$root/.venv"
    fail "$base could not make an environment in $root/.venv (see above)."
  fi
}

# Prints the first suitable Python. Names are tried by running them, because a
# version manager's shim may exist for a version that is not installed.
find_python() {
  local name bare=''
  for name in python3.12 python3.11 python3 python; do
    new_enough "$name" || continue
    if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      echo "$name"
      return
    fi
    bare=$name
  done
  if [ -n "$bare" ]; then
    fail "$bare has no venv module; install it (on Debian and Ubuntu:" \
      "apt install python3-venv) and run this again."
  fi
  fail "Python 3.11 or later is needed and" \
    "$(python3 --version 2>/dev/null || echo 'no Python') was found;" \
    "install Python 3.12 and run this again."
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Installs the package itself, so that the command gen3d works from any folder.
install_package() {
  install_changed pyproject.toml --no-deps --editable "$root"
}

# Prints every 30 seconds how long something takes, and the last line of its
# log that is no warning:
#   report_progress TEXT LOG
# The reporter runs in the background, where Ctrl-C does not end it.
report_progress() {
  local seconds=0 line
  while sleep 1; do
    seconds=$((seconds + 1))
    if [ $((seconds % 30)) -eq 0 ]; then
      line=$(grep -v '^WARNING' "$2" | tail -n 1 | cut -c 1-70) || line=
      echo "$1 ($((seconds / 60)):$(printf %02d $((seconds % 60)))) $line" >&2
    fi
  done
}

stop_reporting() {
  if [ -n "${reporter-}" ]; then
    kill "$reporter" 2>/dev/null || true
    wait "$reporter" 2>/dev/null || true
    reporter=
  fi
}

# Installs a file unless it is unchanged since the last time:
#   install_changed FILE [PIP-ARGUMENT...]   by default --requirement FILE
install_changed() {
  local file=$root/$1 name=$1 stamp=$root/.venv/installed-$1
  local log=$root/.venv/pip.log
  shift
  [ $# -gt 0 ] || set -- --requirement "$file"
  if cmp -s "$file" "$stamp"; then
    return
  fi
  echo "Installing $name into .venv; the first time takes a few minutes." >&2
  : >"$log"
  report_progress "Installing $name" "$log" &
  reporter=$!
  trap stop_reporting EXIT
  local status=0
  "$python" -m pip install --disable-pip-version-check --retries 2 \
    --timeout 30 "$@" >"$log" 2>&1 </dev/null || status=$?
  stop_reporting
  if [ $status -ne 0 ]; then
    if grep -qiE 'connection (broken|refused|timed out|aborted|error)|failed to establish|name resolution|timed out|ProxyError|SSLError' "$log"
    then
      fail "the Python package registry cannot be reached, so $name is not" \
        "installed; check the network and run this again (log: $log)."
    fi
    fail "pip could not install $name:" \
      "$(grep -i '^error' "$log" | tail -n 1) (log: $log)."
  fi
  cp "$file" "$stamp"
}
