#!/usr/bin/env bash
# From a prompt to a 3-D object, in one command and from nothing; see usage.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
  cat <<'END'
usage: bash launch/quickstart.sh [PROMPT] [--FLAG...]

Makes a 3-D object from a prompt; without PROMPT it is "a red chair":
  bash launch/quickstart.sh "a red chair"
The first call makes .venv and installs requirements.txt. Each prompt has a
folder in runs/. A finished object is not made again, and an interrupted run
goes on where it stopped.

--FLAGs go to gen3d.train, for example:
  --config.seed=1
  --config=configs/dreamfusion.py:paper
-h, --help: prints this and ends.
END
}

for word in "$@"; do
  case $word in
    -h|--help) usage; exit ;;
  esac
done

words=()
while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
  case $1 in
    -?*) fail "the option \"$1\" is unknown; flags begin with two dashes, and" \
      "bash launch/quickstart.sh --help shows the usage." ;;
  esac
  words+=("$1")
  shift
done
prompt=${words[*]-a red chair}
case $prompt in
  *[![:space:]]*) ;;
  *) fail 'the prompt is empty; write what to make, such as "a red chair".' ;;
esac

# The folder is named after the prompt; a checksum distinguishes prompts with
# the same name.
slug=$(printf %s "$prompt" | LC_ALL=C tr '[:upper:]' '[:lower:]' |
  LC_ALL=C tr -cs 'a-z0-9' '-' | cut -c 1-60)
slug=${slug#-}
slug=${slug%-}
if [ "${slug//-/ }" != "$prompt" ]; then
  slug=${slug:-prompt}-$(printf %s "$prompt" | cksum | cut -d ' ' -f 1)
fi
workdir=$root/runs/$slug

if [ $# -gt 0 ] || [ ! -f "$workdir/finished.json" ]; then
  environment requirements.txt
  # gen3d.train takes one --config only.
  case " $*" in
    *' --config='*) ;;
    *) set -- --config=configs/dreamfusion.py "$@" ;;
  esac
  (cd "$root" && "$python" -m gen3d.train "$@" --config.prompt="$prompt" \
    --workdir="$workdir" </dev/null)
fi
if [ ! -f "$workdir/finished.json" ]; then
  fail "stopped before the end; the same command goes on from there."
fi

files=(turntable.mp4 preview.png mesh.glb mesh.ply)
for file in "${files[@]}"; do
  if [ ! -f "$workdir/$file" ]; then
    environment requirements.txt
    (cd "$root" && "$python" -m gen3d.export --workdir="$workdir" </dev/null)
    break
  fi
done

echo "\"$prompt\" is in"
printf '  %s\n' "${files[@]/#/$workdir/}"
