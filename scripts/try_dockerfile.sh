#!/usr/bin/env bash
# Run the RUN lines of Dockerfile in a temporary folder, where no Docker is at hand, then detect, the page and its HEALTHCHECK.
# Packages of the python that is called (PYTHON=…) count as installed; users are not made.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
work=$(mktemp -d)
page=
trap '[ -z "$page" ] || kill "$page"; rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$(echo "$work"/venv/lib/python*/site-packages)/outer.pth"
export PATH=$work/venv/bin:$PATH TORCH_INDEX=${TORCH_INDEX:-} PIP_QUIET=1
mkdir "$work/src" "$work/data"
cp -r "$root"/{src,conf,pyproject.toml,README.md,LICENSE} "$work/src"  # as .dockerignore leaves it
cd "$work/src"
grep '^RUN ' "$root/Dockerfile" | grep -v useradd | sed "s|^RUN ||; s|/wheels|$work/wheels|g" | while read -r line; do
  echo "+ $line"
  bash -euc "$line" </dev/null
done
cd "$work/data"
[ -x "$work/venv/bin/fanet" ] && fanet --version
"$python" -c 'from matplotlib import cbook; print(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))' | xargs -I{} fanet detect {} save=json out=faces
fanet app host=127.0.0.1 &
page=$!
check=$(sed -n 's/^HEALTHCHECK.* CMD //p' "$root/Dockerfile")
for _ in $(seq 60); do sleep 2; if bash -c "$check" 2>/dev/null; then echo "the page answers"; exit 0; fi; done
echo "the page does not answer"; exit 1
