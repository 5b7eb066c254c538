"""One training step of a nanoGPT-like GPT in PyTorch (CPU, eager), to compare with p2ptrain's.

Setup:  python3 -m venv venv && venv/bin/pip install torch==2.11.0 numpy

    pytorch_gpt.py --precision f32 --threads 2 --steps 20
    pytorch_gpt.py --weights init.safetensors --batches batches.i32 --steps 51 --losses

Prints one JSON object: step time (median, minimum), tokens a second, peak resident memory, losses.
Shapes, parameter names and the order of operations are those of `p2ptrain bench step`.
"""

import argparse
import json
import math
import resource
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


class LayerNorm(nn.Module):
    """Layer norm whose bias may be absent."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.c_attn(x).split(c, dim=2)
        heads = lambda y: y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class Mlp(nn.Module):
    def __init__(self, width, bias, gelu):
        super().__init__()
        self.gelu = "tanh" if gelu == "tanh" else "none"
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.gelu))


class Layer(nn.Module):
    def __init__(self, width, heads, bias, gelu):
        super().__init__()
        self.ln_1 = LayerNorm(width, bias)
        self.attn = Attention(width, heads, bias)
        self.ln_2 = LayerNorm(width, bias)
        self.mlp = Mlp(width, bias, gelu)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """nanoGPT's model without dropout; names of parameters are nanoGPT's."""

    def __init__(self, args):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(args.vocab, args.width),
                "wpe": nn.Embedding(args.context, args.width),
                "h": nn.ModuleList(
                    Layer(args.width, args.heads, args.bias, args.gelu) for _ in range(args.layers)
                ),
                "ln_f": LayerNorm(args.width, args.bias),
            }
        )
        self.lm_head = nn.Linear(args.width, args.vocab, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith("c_proj.weight")
                scale = 0.02 / math.sqrt(2 * args.layers) if residual else 0.02
                nn.init.normal_(parameter, 0.0, scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if args.tied:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens, targets):
        positions = torch.arange(tokens.shape[1])
        x = self.transformer.wte(tokens) + self.transformer.wpe(positions)
        for layer in self.transformer.h:
            x = layer(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def read_safetensors(path):
    """The tensors of a safetensors file of f32 values. Needs no package beside torch."""
    data = bytearray(Path(path).read_bytes())
    (header_len,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_len])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            sys.exit(f"{path}: {name} is {entry['dtype']}, expected F32")
        start, end = (8 + header_len + offset for offset in entry["data_offsets"])
        count = (end - start) // 4
        values = torch.frombuffer(data, dtype=torch.float32, count=count, offset=start)
        tensors[name] = values.reshape(entry["shape"]).clone()
    return tensors


def load_weights(model, path, tied):
    """Loads every parameter; a name too many or too few is an error."""
    tensors = read_safetensors(path)
    if tied:
        tensors.setdefault("lm_head.weight", tensors["transformer.wte.weight"])
    model.load_state_dict(tensors, strict=True)


def read_batches(path, args):
    """Samples of context + 1 tokens, i32 little-endian, step after step."""
    tokens = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.int32)
    step = args.batch * (args.context + 1)
    if len(tokens) % step or len(tokens) // step == 0:
        sys.exit(f"{path}: {len(tokens)} tokens are no whole number of steps of {step}")
    return tokens.view(-1, args.batch, args.context + 1).long()


def make_optimizer(model, args, foreach):
    """AdamW that decays matrices and embeddings only, as p2ptrain's default decay group does."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, foreach=foreach, fused=False
    )


def train(args, foreach, batches, steps, warmup):
    """Step times in seconds (without the warm-up) and the loss of every step."""
    torch.manual_seed(args.seed)
    model = Gpt(args)
    if args.weights:
        load_weights(model, args.weights, args.tied)
    optimizer = make_optimizer(model, args, foreach)
    times, losses = [], []
    for step in range(warmup + steps):
        batch = batches[step % len(batches)]
        tokens, targets = batch[:, :-1], batch[:, 1:]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in range(0, args.batch, args.micro):
            part = slice(micro, micro + args.micro)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                loss = model(tokens[part], targets[part])
            (loss * args.micro / args.batch).backward()
            total += loss.item() * args.micro / args.batch
        if args.clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        if step >= warmup:
            times.append(time.perf_counter() - start)
        losses.append(total)
    return times, losses


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shape = parser.add_argument_group("model")
    shape.add_argument("--vocab", type=int, default=8192)
    shape.add_argument("--context", type=int, default=256)
    shape.add_argument("--width", type=int, default=384)
    shape.add_argument("--layers", type=int, default=6)
    shape.add_argument("--heads", type=int, default=6)
    shape.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True)
    shape.add_argument("--tied", action=argparse.BooleanOptionalAction, default=True)
    shape.add_argument("--gelu", choices=("erf", "tanh"), default="erf")
    run = parser.add_argument_group("run")
    run.add_argument("--batch", type=int, default=8, help="samples of a step")
    run.add_argument("--micro", type=int, help="samples of a micro-batch (default: the batch)")
    run.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--steps", type=int, default=20)
    run.add_argument("--warmup", type=int, default=3)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--weights", help="safetensors file with the initial weights")
    run.add_argument("--batches", help="raw i32 file with the tokens of the steps")
    run.add_argument("--losses", action="store_true", help="print every loss; no warm-up")
    run.add_argument("--adamw", choices=("faster", "foreach", "single"), default="faster")
    optimizer = parser.add_argument_group("optimizer")
    optimizer.add_argument("--lr", type=float, default=3e-4)
    optimizer.add_argument("--beta1", type=float, default=0.9)
    optimizer.add_argument("--beta2", type=float, default=0.95)
    optimizer.add_argument("--eps", type=float, default=1e-8)
    optimizer.add_argument("--weight-decay", type=float, default=0.1)
    optimizer.add_argument("--clip", type=float, default=0.0, help="global norm; 0: none")
    args = parser.parse_args()
    args.micro = args.micro or args.batch
    if args.batch % args.micro:
        parser.error("--micro must divide --batch")
    return args


def choose_foreach(args):
    """Whether the foreach form of AdamW is the faster one here. Each form is tried in a process of
    its own, so that neither adds to this one's peak memory."""
    if args.adamw != "faster":
        return args.adamw == "foreach"
    medians = {}
    for form in ("foreach", "single"):
        command = [sys.executable, __file__, *sys.argv[1:], "--adamw", form]
        command += ["--steps", "3", "--warmup", "1"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        medians[form] = json.loads(out)["step_ms_median"]
    return medians["foreach"] < medians["single"]


def rss_peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    args = parse_args()
    rss_import_bytes = rss_peak_bytes()
    torch.set_num_threads(args.threads)
    if args.batches:
        batches = read_batches(args.batches, args)
    else:
        generator = torch.Generator().manual_seed(args.seed)
        shape = (4, args.batch, args.context + 1)
        batches = torch.randint(args.vocab, shape, generator=generator)
    warmup = 0 if args.losses else args.warmup
    foreach = choose_foreach(args)
    times, losses = train(args, foreach, batches, args.steps, warmup)
    median = statistics.median(times)
    report = {
        "trainer": f"pytorch {torch.__version__}",
        "precision": args.precision,
        "threads": args.threads,
        "adamw": "foreach" if foreach else "single",
        "steps": args.steps,
        "step_ms_median": round(1e3 * median, 2),
        "step_ms_min": round(1e3 * min(times), 2),
        "tokens_per_s": round(args.batch * args.context / median, 1),
        "rss_peak_bytes": rss_peak_bytes(),
        "rss_import_bytes": rss_import_bytes,
        "loss_last": losses[-1],
    }
    if args.losses:
        report["losses"] = losses
    print(json.dumps(report))


if __name__ == "__main__":
    main()
