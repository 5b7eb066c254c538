"""Samples a second of two nodes with one core each against one node with two cores.

    python3 docs/bench/two_nodes.py --batch 16

On loopback, alternating. Each of the two nodes is held on one core by `taskset`. Steps are counted between two
looks at the status, after the first steps.
"""

import argparse
import json
import os
import time

from swarm import Node, add_model_arguments, step_of, with_folder, write_job


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20)
    add_model_arguments(parser, width=384, layers=6, heads=6)
    parser.set_defaults(context=256, batch=16, micro=8)
    args = parser.parse_args()
    with_folder(args, lambda folder: run(folder, args))


def run(folder, args):
    report = {"batch": args.batch, "one_node": [], "two_nodes": []}
    for number in range(args.rounds):
        report["one_node"].append(measure(folder, args, f"{number}-one", 1))
        report["two_nodes"].append(measure(folder, args, f"{number}-two", 2))
    ratios = [two / one for one, two in zip(report["one_node"], report["two_nodes"])]
    print(json.dumps({**report, "ratios": ratios}))


def measure(folder, args, name, count):
    args.min_peers = count
    job = write_job(folder, args)
    nodes = []
    try:
        first = Node(folder, f"{name}-a", "run", job, "--threads", str(3 - count), "--port", str(args.port))
        nodes.append(first)
        if count == 2:
            pin(first, 0)
            second = Node(folder, f"{name}-b", "join", "--peer", f"127.0.0.1:{args.port}", "--threads", "1")
            pin(second, 1)
            nodes.append(second)
        begin, status = first.wait(lambda s: step_of(s) >= 5, 180, "fifth step")
        start = step_of(status)
        time.sleep(args.seconds)
        end, status = first.wait(lambda s: step_of(s) > first.step(), 60, "next step")
        rate = (step_of(status) - start) * args.batch / (end - begin)
        print(f"{name}: {rate:.2f} samples/s", flush=True)
        return rate
    finally:
        for node in nodes:
            node.kill()
            node.stop()


def pin(node, core):
    """Holds the process, all its threads and those that it starts later, on one core."""
    for thread in os.listdir(f"/proc/{node.process.pid}/task"):
        os.sched_setaffinity(int(thread), {core})


if __name__ == "__main__":
    main()
