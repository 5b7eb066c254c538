"""Time from killing a node with SIGKILL to the next commit of the survivor, many times.

    python3 docs/bench/kill.py --kills 100

Two nodes on loopback with one thread each. The times include up to 50 ms until the status is read.
The goal is one second plus the time of one step. Afterwards `p2ptrain ledger` checks that no sample was lost or
counted twice.
"""

import argparse
import json
import random
import statistics
import subprocess
import time

from swarm import (
    PROGRAM, Node, add_model_arguments, quantiles, step_of, with_folder, working, write_job,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    add_model_arguments(parser, width=192, layers=6, heads=6)
    args = parser.parse_args()
    with_folder(args, lambda folder: run(folder, args))


def run(folder, args):
    moments = random.Random(args.seed)
    job = write_job(folder, args)
    first = Node(folder, "first", "run", job, "--threads", "1", "--port", str(args.port))
    join = ("join", "--peer", f"127.0.0.1:{args.port}", "--threads", "1")
    times, steps_ms, rejoins = [], [], []
    second = None
    try:
        first.wait(lambda s: step_of(s) >= 3, 120, "third step")
        for number in range(args.kills):
            second = Node(folder, "second", *join)
            at, status = first.wait(lambda s: working(s, "second"), 60, "work of the second node")
            rejoins.append(at - second.started)
            after = step_of(status) + 2
            _, status = first.wait(lambda s: step_of(s) >= after, 60, "two more steps")
            step_ms = status["job"]["step_ms"]["total"]
            # A random moment of a step.
            time.sleep(moments.random() * step_ms / 1e3)
            step = first.step()
            killed = second.kill()
            second.stop()
            at, _ = first.wait(lambda s: step_of(s) > step, 60, "commit after the kill")
            times.append(at - killed)
            steps_ms.append(step_ms)
            print(f"kill {number + 1}: {times[-1]:.3f} s, a step takes {step_ms / 1e3:.3f} s", flush=True)
    finally:
        if second:
            second.stop()
        first.stop()
    over = [t - s / 1e3 for t, s in zip(times, steps_ms)]
    ledger = subprocess.run([PROGRAM, "ledger", "--dir", first.folder], capture_output=True, text=True)
    report = {
        "kill_to_commit_s": quantiles(times),
        "beyond_one_step_s": quantiles(over),
        "step_s_median": statistics.median(steps_ms) / 1e3,
        "rejoin_to_work_s": quantiles(rejoins),
        "ledger_ok": ledger.returncode == 0,
    }
    print(json.dumps(report))
    print(ledger.stdout or ledger.stderr)
    if ledger.returncode != 0 or max(over) > 1.0:
        raise SystemExit("the goal was missed: a commit within a step's time and one second")


if __name__ == "__main__":
    main()
