#!/usr/bin/env bash
# p2ptrain against PyTorch on this machine, alternating in one run, as a Markdown table of ratios.
# `p2ptrain bench` without a job file measures the model that pytorch_gpt.py has by default.
#
#   python3 -m venv .venv && .venv/bin/pip install torch==2.11.0 numpy
#   cargo build --release
#   docs/bench/run_all.sh [ROUNDS]         # 3 rounds by default, about 4 minutes
#
# Environment: PYTHON (.venv/bin/python), P2PTRAIN (target/release/p2ptrain), THREADS (2), STEPS (12).
set -euo pipefail
cd "$(dirname "$0")/../.."

rounds=${1:-3}
python=${PYTHON:-$PWD/.venv/bin/python}
p2ptrain=${P2PTRAIN:-$PWD/target/release/p2ptrain}
threads=${THREADS:-2}
steps=${STEPS:-12}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 1. The same losses, on the same initial weights and batches.
"$p2ptrain" bench step --precision f32 --steps 51 --threads "$threads" --json \
    --dump "$work/dump" >"$work/p2ptrain.losses.json"
"$python" docs/bench/pytorch_gpt.py --weights "$work/dump/init.safetensors" \
    --batches "$work/dump/batches.i32" --steps 51 --threads "$threads" --losses \
    >"$work/pytorch.losses.json"
"$python" docs/bench/table.py losses "$work/p2ptrain.losses.json" "$work/pytorch.losses.json"

# 2. Step time and peak memory, alternating.
for round in $(seq "$rounds"); do
    for precision in f32 bf16; do
        "$python" docs/bench/pytorch_gpt.py --precision "$precision" --threads "$threads" \
            --steps "$steps" >"$work/pytorch.$precision.$round.json"
        "$p2ptrain" bench step --precision "$precision" --steps "$steps" \
            --threads "$threads" --json >"$work/p2ptrain.$precision.$round.json"
    done
done
"$python" docs/bench/table.py steps "$work"/pytorch.*.[0-9]*.json -- "$work"/p2ptrain.*.[0-9]*.json
