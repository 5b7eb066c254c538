"""Nodes as processes, for the benchmarks: start, watch, kill. Standard library only."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("P2PTRAIN", ROOT / "target/release/p2ptrain"))

# How often a node's status is read. A commit is seen at most this much late.
WATCH_MS = 50

JOB = """
name = "bench"
steps = 1000000
min_peers = {min_peers}
[model]
kind = "gpt"
vocab = 256
block_size = {context}
layers = {layers}
heads = {heads}
width = {width}
[data]
files = ["{data}"]
[batch]
global = {batch}
micro = {micro}
[eval]
every = 0
[checkpoint]
every = 0
"""


def default_data():
    """Text that every machine has that built the program."""
    home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    for crate in sorted(home.glob("registry/src/*/libp2p-swarm-*")):
        return crate
    raise SystemExit("no Rust sources under ~/.cargo/registry/src: name a text with --data")


class Node:
    """One node in a folder of its own."""

    def __init__(self, folder, name, *command):
        self.folder, self.name = Path(folder) / name, name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.statuses = []  # (monotonic seconds, status)
        self.news = threading.Condition()
        self.log = open(self.folder / "out.log", "ab")
        command = [PROGRAM, *command, "--dir", self.folder, "--name", name]
        command += ["--listen", "127.0.0.1", "--no-mdns"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.started = time.monotonic()
        self.watcher = None
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while self.process.poll() is None:
            command = [PROGRAM, "watch", "--json", "--interval", str(WATCH_MS)]
            command += ["--dir", self.folder]
            self.watcher = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            for line in self.watcher.stdout:
                status = json.loads(line).get("status")
                if status is not None:
                    with self.news:
                        self.statuses.append((time.monotonic(), status))
                        self.news.notify_all()
            self.watcher.wait()
            time.sleep(0.02)

    def wait(self, condition, limit_s, what):
        """The first (time, status) from now on for which `condition(status)` holds."""
        deadline = time.monotonic() + limit_s
        seen = 0
        with self.news:
            seen = max(0, len(self.statuses) - 1)
            while True:
                while seen < len(self.statuses):
                    at, status = self.statuses[seen]
                    seen += 1
                    if condition(status):
                        return at, status
                left = deadline - time.monotonic()
                if left <= 0 or self.process.poll() is not None:
                    ended = "" if self.process.poll() is None else "; the node has ended"
                    raise SystemExit(f"{self.name}: no {what} within {limit_s} s{ended}; see {self.folder}")
                self.news.wait(min(left, 0.5))

    def step(self):
        return step_of(self.statuses[-1][1]) if self.statuses else 0

    def kill(self):
        """SIGKILL; returns when it was sent."""
        at = time.monotonic()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return at

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.watcher and self.watcher.poll() is None:
            self.watcher.kill()


def step_of(status):
    return (status.get("job") or {}).get("step", 0)


def working(status, name):
    """Whether the member of this name has micro-batches in the present step."""
    for peer in status.get("peers", []):
        slice_ = peer.get("slice")
        if peer.get("name") == name and slice_ and slice_["end"] > slice_["first"]:
            return True
    return False


def swarm_secret():
    out = subprocess.run([PROGRAM, "swarm-key"], check=True, capture_output=True, text=True).stdout
    return out.split()[0]


def write_job(folder, args):
    path = Path(folder) / "job.toml"
    path.write_text(JOB.format(**vars(args)))
    return path


def add_model_arguments(parser, width, layers, heads):
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--heads", type=int, default=heads)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--min-peers", type=int, default=1)
    parser.add_argument("--data", default=None, help="text file or folder (default: Rust sources)")
    parser.add_argument("--port", type=int, default=47610, help="control port of the first node")
    parser.add_argument("--keep", action="store_true", help="keep the nodes' folders")


def with_folder(args, body):
    """Runs `body(folder)` with a temporary folder, which stays if it fails."""
    args.data = args.data or default_data()
    folder = tempfile.mkdtemp(prefix="p2ptrain-bench-")
    os.environ["P2PTRAIN_SWARM"] = swarm_secret()
    body(folder)
    if args.keep:
        print(f"folders: {folder}")
    else:
        shutil.rmtree(folder)


def quantiles(values):
    ordered = sorted(values)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return {"n": len(ordered), "median": at(0.5), "p90": at(0.9), "max": ordered[-1]}
