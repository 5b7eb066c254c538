"""Runs `gpt_step` and `pytorch_gpt_step.py` by turns and prints the ratio of their times.

    cargo bench -p p2ptrain-kernels --bench gpt_step --no-run
    python kernels/benches/compare_gpt_step.py PATH_OF_THE_BENCHMARK [f32|bf16] [ROUNDS] [THREADS]

Turns, and the least time of each over all rounds, keep what else the machine does out of the
ratio. With one thread the processor time is printed as well, which other load hardly changes.
"""

import pathlib
import re
import subprocess
import sys

program = sys.argv[1]
precision = sys.argv[2] if len(sys.argv) > 2 else "f32"
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
threads = sys.argv[4] if len(sys.argv) > 4 else "2"
pytorch = str(pathlib.Path(__file__).with_name("pytorch_gpt_step.py"))


def run(command):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(output.strip(), flush=True)
    found = re.search(r"min ([\d.]+) ms +median ([\d.]+) ms +cpu ([\d.]+) ms", output)
    return float(found[1]), float(found[2]), float(found[3])


ours, theirs = [], []
for _ in range(rounds):
    ours.append(run([program, precision, "--threads", threads, "--steps", "5"]))
    theirs.append(run([sys.executable, pytorch, precision, "--threads", threads, "--steps", "5"]))
least = [min(times)[0] for times in (ours, theirs)]
cpu = [min(time[2] for time in times) for times in (ours, theirs)]
median = [sorted(time[1] for time in times)[rounds // 2] for times in (ours, theirs)]
print(f"{precision}: least {least[0]:.1f} / {least[1]:.1f} ms = {least[0] / least[1]:.3f}, "
      f"median {median[0]:.1f} / {median[1]:.1f} ms = {median[0] / median[1]:.3f}")
if threads == "1":
    print(f"processor time {cpu[0]:.1f} / {cpu[1]:.1f} ms = {cpu[0] / cpu[1]:.3f}")
