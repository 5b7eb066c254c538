"""Times PyTorch's operators at the shapes of `ops.rs` beside this file, on two threads unless told otherwise.

    python kernels/benches/pytorch_ops.py [FILTER] [THREADS]

On one thread, the processor time in the last column is steady on a loaded machine.

Written for PyTorch 2.11.0 (CPU).
"""

import sys
import time

import torch
import torch.nn.functional as F

ROWS, WIDTH, VOCAB = 2048, 384, 8192
FILTER = sys.argv[1] if len(sys.argv) > 1 else ""
THREADS = int(sys.argv[2]) if len(sys.argv) > 2 else 2


def bench(name, work, unit, f):
    if FILTER not in name:
        return
    f()
    f()
    times = []
    begin = time.perf_counter()
    cpu = time.thread_time()
    while len(times) < 7 or time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    cpu = (time.thread_time() - cpu) / len(times) * 1e3
    times.sort()
    least, median = times[0] * 1e3, times[len(times) // 2] * 1e3
    rate = work / least * 1e-6
    print(f"{name:34} min {least:8.3f} ms  median {median:8.3f} ms  {rate:7.1f} {unit}  cpu {cpu:8.3f} ms")


def products():
    shapes = [("qkv", WIDTH, 3 * WIDTH), ("proj", WIDTH, WIDTH), ("up", WIDTH, 4 * WIDTH),
              ("down", 4 * WIDTH, WIDTH), ("head", WIDTH, VOCAB)]
    for name, inputs, outputs in shapes:
        work = 2 * ROWS * inputs * outputs
        for kind, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
            x = torch.randn(ROWS, inputs, dtype=dtype)
            w = torch.randn(outputs, inputs, dtype=dtype)
            dy = torch.randn(ROWS, outputs, dtype=dtype)
            bench(f"{kind} {name} y", work, "GFLOP/s", lambda: x @ w.t())
            bench(f"{kind} {name} dx", work, "GFLOP/s", lambda: dy @ w)
            bench(f"{kind} {name} dw", work, "GFLOP/s", lambda: dy.t() @ x)


def attention():
    for kind, dtype in [("", torch.float32), (" bf16", torch.bfloat16)]:
        work = 48 * 256 * 256 * 64
        q, k, v = (torch.randn(8, 6, 256, 64, dtype=dtype, requires_grad=True) for _ in range(3))
        dy = torch.randn(8, 6, 256, 64, dtype=dtype)

        def forward():
            with torch.no_grad():
                F.scaled_dot_product_attention(q, k, v, is_causal=True)

        bench(f"attention{kind} fwd", 2 * work, "GFLOP/s", forward)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        bench(f"attention{kind} bwd", 5 * work, "GFLOP/s",
              lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True))


def rows():
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    dy = torch.randn(ROWS, WIDTH)
    gamma, beta = (torch.randn(WIDTH, requires_grad=True) for _ in range(2))
    size = 4 * x.numel()

    def forward(f):
        def run():
            with torch.no_grad():
                f()
        return run

    norm = lambda: F.layer_norm(x, (WIDTH,), gamma, beta)
    bench("layer_norm fwd", 2 * size, "GB/s", forward(norm))
    y = norm()
    bench("layer_norm bwd", 3 * size, "GB/s",
          lambda: torch.autograd.grad(y, (x, gamma, beta), dy, retain_graph=True))
    h = torch.randn(ROWS, 4 * WIDTH, requires_grad=True)
    dh = torch.randn(ROWS, 4 * WIDTH)
    size = 4 * h.numel()
    for name, form in [("tanh", "tanh"), ("erf", "none")]:
        bench(f"gelu {name} fwd", 2 * size, "GB/s", forward(lambda: F.gelu(h, approximate=form)))
        g = F.gelu(h, approximate=form)
        bench(f"gelu {name} bwd", 3 * size, "GB/s",
              lambda: torch.autograd.grad(g, h, dh, retain_graph=True))
    bench("column sums", size, "GB/s", forward(lambda: dh.sum(0)))
    logits = torch.randn(ROWS, VOCAB, requires_grad=True)
    targets = torch.arange(ROWS) * 31 % VOCAB

    def cross_entropy():
        torch.autograd.grad(F.cross_entropy(logits, targets), logits)

    bench("softmax_xent fwd+bwd", 8 * logits.numel(), "GB/s", cross_entropy)
    bench("softmax_xent fwd", 4 * logits.numel(), "GB/s",
          forward(lambda: F.cross_entropy(logits, targets)))
    table = torch.randn(VOCAB, WIDTH, requires_grad=True)
    size = 4 * x.numel()
    bench("embedding fwd", 2 * size, "GB/s", forward(lambda: F.embedding(targets, table)))
    e = F.embedding(targets, table)
    bench("embedding bwd", 3 * size, "GB/s",
          lambda: torch.autograd.grad(e, table, dy, retain_graph=True))


def optimizer():
    length = 13_900_000
    p = torch.randn(length, requires_grad=True)
    p.grad = torch.randn(length)
    adamw = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    bench("adamw 13.9M", 28 * length, "GB/s", adamw.step)
    sgd = torch.optim.SGD([p], lr=1e-3, momentum=0.9, weight_decay=0.1)
    bench("sgd 13.9M", 20 * length, "GB/s", sgd.step)
    bench("grad_norm_sq 13.9M", 4 * length, "GB/s", lambda: (p.grad * p.grad).sum())


torch.set_num_threads(THREADS)
torch.manual_seed(0)
print(f"# PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
products()
attention()
rows()
optimizer()
