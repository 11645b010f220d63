#!/usr/bin/env bash
# From a prompt to a 3-D object, in one command and from nothing; see usage.
if [ -z "${BASH_VERSION-}" ]; then  # sh quickstart.sh
  command -v bash >/dev/null || {
    echo 'gen3d: quickstart.sh needs bash, which is not installed.' >&2
    exit 1
  }
  exec bash "$0" "$@"
fi
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
  cat <<'END'
usage: bash launch/quickstart.sh [--FLAG=VALUE...] [PROMPT]

Makes a 3-D object from a prompt; without PROMPT it is "a red chair":
  bash launch/quickstart.sh "a red chair"
The first call makes .venv and installs requirements.txt and the command gen3d.
Each prompt, and each set of flags, has a folder in runs/. A finished object is
not made again, and an interrupted run goes on where it stopped.

FLAGs go to gen3d train, for example:
  --config.seed=1
  --config=dreamfusion:paper
-h, --help: prints this and ends.
END
}

for word in "$@"; do
  case $word in
    -h|--help) usage; exit ;;
  esac
done

words=() flags=()
for word in "$@"; do
  case $word in
    --workdir*|--config.prompt*) fail "the flag \"$word\" is unknown here: the" \
      "folder is named after the prompt, which is a word without dashes." ;;
    --?*=*) flags+=("$word") ;;
    --?*) fail "the flag \"$word\" has no value; write $word=VALUE." ;;
    -?*) fail "the option \"$word\" is unknown; flags begin with two dashes, and" \
      "bash launch/quickstart.sh --help shows the usage." ;;
    *) words+=("$word") ;;
  esac
done
prompt=${words[*]-a red chair}
case $prompt in
  *[![:space:]]*) ;;
  *) fail 'the prompt is empty; write what to make, such as "a red chair".' ;;
esac

# The folder is named after the prompt; checksums distinguish prompts with the
# same name, and flags.
slug=$(printf %s "$prompt" | LC_ALL=C tr '[:upper:]' '[:lower:]' |
  LC_ALL=C tr -cs 'a-z0-9' '-' | cut -c 1-60)
slug=${slug#-}
slug=${slug%-}
if [ "${slug//-/ }" != "$prompt" ]; then
  slug=${slug:-prompt}-$(printf %s "$prompt" | cksum | cut -d ' ' -f 1)
fi
if [ ${#flags[@]} -gt 0 ]; then
  slug=$slug-$(printf '%s\n' "${flags[@]}" | cksum | cut -d ' ' -f 1)
fi
workdir=$root/runs/$slug

if [ ! -f "$workdir/finished.json" ]; then
  environment requirements.txt
  install_package
  # gen3d.train takes one --config only.
  set -- ${flags[@]+"${flags[@]}"}
  case " $*" in
    *' --config='*) ;;
    *) set -- --config=dreamfusion "$@" ;;
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
# As a word of a command line.
quoted() {
  case $1 in
    *[!A-Za-z0-9_./=:-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
  esac
}

to=$(quoted "$workdir")
cat <<END
Next, after ". $root/.venv/bin/activate":
  gen3d view $to
  gen3d gallery $(quoted "$root/runs") --out=$(quoted "$root/gallery")
  gen3d export --workdir=$to --resolution=256 --formats=glb,obj,ply
  gen3d train --config=refine --config.scene.start_from=$to \\
    --config.prompt=$(quoted "$prompt") --workdir=$(quoted "$workdir-mesh")
  pip install tensorboard && tensorboard --logdir=$(quoted "$root/runs")
END
