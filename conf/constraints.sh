#!/usr/bin/env bash
# Renew conf/constraints.txt with what a fresh install resolves to today: conf/constraints.sh
# Machines that start later install exactly this, so they join a cluster that is already running.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --editable '.[test,aws,search,multilingual]'

{
    echo "# What cluster machines, images and workflows install; conf/constraints.sh renews it. Python 3.11 to 3.13, Linux x86-64."
    "$scratch/venv/bin/pip" freeze --exclude-editable
} >"$scratch/constraints.txt"

mv "$scratch/constraints.txt" conf/constraints.txt
git --no-pager diff --stat -- conf/constraints.txt
