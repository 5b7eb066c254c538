"""Time from starting `p2ptrain join` to the newcomer's first contributed step, with 14M parameters.

    python3 docs/bench/join.py --joins 10

On loopback. The first node has one thread, the newcomer one. The newcomer's folder is new each time, so it fetches
job, data and state. The goal is three seconds.
"""

import argparse
import json

from swarm import Node, add_model_arguments, quantiles, step_of, with_folder, working, write_job


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--joins", type=int, default=10)
    add_model_arguments(parser, width=432, layers=6, heads=6)
    args = parser.parse_args()
    with_folder(args, lambda folder: run(folder, args))


def run(folder, args):
    job = write_job(folder, args)
    first = Node(folder, "first", "run", job, "--threads", "1", "--port", str(args.port))
    join = ("join", "--peer", f"127.0.0.1:{args.port}", "--threads", "1")
    times, newcomer = [], None
    try:
        first.wait(lambda s: step_of(s) >= 3, 120, "third step")
        for number in range(args.joins):
            name = f"newcomer{number}"
            newcomer = Node(folder, name, *join)
            at, status = first.wait(lambda s: working(s, name), 60, f"work of {name}")
            # Its share is in the plan of this step; it has contributed when that one is committed.
            step = step_of(status)
            at, _ = first.wait(lambda s: step_of(s) > step, 60, "commit of its first step")
            times.append(at - newcomer.started)
            print(f"join {number + 1}: {times[-1]:.3f} s", flush=True)
            newcomer.stop()
    finally:
        if newcomer:
            newcomer.stop()
        first.stop()
    report = {"join_to_contribution_s": quantiles(times)}
    print(json.dumps(report))
    if report["join_to_contribution_s"]["median"] > 3.0:
        raise SystemExit("the goal was missed: three seconds")


if __name__ == "__main__":
    main()
