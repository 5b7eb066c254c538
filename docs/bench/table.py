"""Tables of run_all.sh: ratios of p2ptrain to PyTorch, and the comparison of losses.

    table.py losses P2PTRAIN.json PYTORCH.json
    table.py steps PYTORCH.json... -- P2PTRAIN.json...
"""

import json
import statistics
import sys
from pathlib import Path

LOSS_STEP = 50
LOSS_TOLERANCE = 1e-4


def main():
    if len(sys.argv) >= 4 and sys.argv[1] == "losses":
        losses(*map(read, sys.argv[2:4]))
    elif len(sys.argv) >= 5 and sys.argv[1] == "steps" and "--" in sys.argv:
        split = sys.argv.index("--")
        steps(list(map(read, sys.argv[2:split])), list(map(read, sys.argv[split + 1 :])))
    else:
        sys.exit(__doc__)


def read(path):
    return json.loads(Path(path).read_text())


def losses(ours, theirs):
    pairs = list(zip(ours["losses"], theirs["losses"]))
    print("| Step | p2ptrain | PyTorch | relative difference |\n|---|---|---|---|")
    for step, (a, b) in enumerate(pairs):
        if step in (0, 1, 10, LOSS_STEP):
            print(f"| {step} | {a:.6f} | {b:.6f} | {abs(a - b) / abs(b):.1e} |")
    print()
    a, b = pairs[LOSS_STEP]
    if abs(a - b) > LOSS_TOLERANCE * abs(b):
        sys.exit(f"losses differ at step {LOSS_STEP} by more than {LOSS_TOLERANCE}")


def steps(theirs, ours):
    print("| Precision | What | p2ptrain | PyTorch | ratio |\n|---|---|---|---|---|")
    rows = [
        ("step, median of medians", "step_ms_median", statistics.median, "ms", 1),
        ("step, fastest", "step_ms_min", min, "ms", 1),
        ("peak memory", "rss_peak_bytes", max, "MiB", 1 << 20),
    ]
    for precision in ("f32", "bf16"):
        for what, key, pick, unit, scale in rows:
            a, b = (
                pick([run[key] for run in runs if run["precision"] == precision])
                for runs in (ours, theirs)
            )
            print(
                f"| {precision} | {what} | {a / scale:.0f} {unit} | {b / scale:.0f} {unit} "
                f"| {a / b:.2f} |"
            )


if __name__ == "__main__":
    main()
