"""Times PyTorch's training step of the GPT in `gpt_step.rs` beside this file.

    python kernels/benches/pytorch_gpt_step.py [f32|bf16] [--threads N] [--steps N]

Eager mode; bf16 is autocast. Written for PyTorch 2.11.0 (CPU).
"""

import argparse
import resource
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, TOKENS, WIDTH, LAYERS, HEADS, BATCH = 8192, 256, 384, 6, 6, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(width, dim=2)
        q, k, v = (t.view(batch, tokens, HEADS, width // HEADS).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).contiguous().view(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(TOKENS))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))


parser = argparse.ArgumentParser()
parser.add_argument("precision", nargs="?", default="f32", choices=["f32", "bf16"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=5)
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
torch.manual_seed(1)
model = Gpt()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
tokens = (torch.arange(BATCH * TOKENS) * 7919 % VOCAB).view(BATCH, TOKENS)
targets = (tokens + 1) % VOCAB
times, cpu = [], []
for step in range(arguments.steps + 1):
    start, cpu_start = time.perf_counter(), time.process_time()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
        loss = model(tokens, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    times.append(time.perf_counter() - start)
    cpu.append(time.process_time() - cpu_start)
times = sorted(times[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(f"step {arguments.precision} PyTorch {torch.__version__} {arguments.threads} threads: "
      f"min {times[0] * 1e3:.1f} ms  median {times[len(times) // 2] * 1e3:.1f} ms  "
      f"cpu {min(cpu[1:]) * 1e3:.1f} ms  loss {loss.item():.4f}  peak {peak} MiB")
