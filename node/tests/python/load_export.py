"""Loads an exported model into a PyTorch module of the same names and compares its logits.

    python load_export.py model.safetensors expected.json

`expected.json` is {"tokens": [[...]], "logits": [...]}, written by the Rust test
`checkpoint_export` (set P2PTRAIN_PYTHON to a Python with torch and safetensors, and it runs this).
"""

import json
import sys

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

TOLERANCE = 2e-4


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c["heads"]
        self.c_attn = nn.Linear(c["width"], 3 * c["width"], bias=c["bias"])
        self.c_proj = nn.Linear(c["width"], c["width"], bias=c["bias"])

    def forward(self, x):
        batch, time, width = x.shape
        q, k, v = self.c_attn(x).split(width, dim=2)
        q, k, v = (t.view(batch, time, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, time, width))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_fc = nn.Linear(c["width"], 4 * c["width"], bias=c["bias"])
        self.c_proj = nn.Linear(4 * c["width"], c["width"], bias=c["bias"])

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1 = nn.LayerNorm(c["width"], bias=c["bias"])
        self.attn = Attention(c)
        self.ln_2 = nn.LayerNorm(c["width"], bias=c["bias"])
        self.mlp = Mlp(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(c["vocab"], c["width"]),
                "wpe": nn.Embedding(c["block_size"], c["width"]),
                "h": nn.ModuleList(Layer(c) for _ in range(c["layers"])),
                "ln_f": nn.LayerNorm(c["width"], bias=c["bias"]),
            }
        )
        self.lm_head = nn.Linear(c["width"], c["vocab"], bias=False)
        if c["tied"]:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])
        x = self.transformer.wte(tokens) + self.transformer.wpe(places)
        for layer in self.transformer.h:
            x = layer(x)
        return self.lm_head(self.transformer.ln_f(x))


def main():
    model_path, expected_path = sys.argv[1:]
    with safe_open(model_path, framework="pt") as file:
        config = json.loads(file.metadata()["p2ptrain.model"])
        weights = {name: file.get_tensor(name) for name in file.keys()}
    model = Gpt(config)
    # Strict: a name that is missing, unknown or of another shape is an error.
    model.load_state_dict(weights, strict=True)
    with open(expected_path) as file:
        expected = json.load(file)
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"])).flatten()
    wanted = torch.tensor(expected["logits"])
    assert logits.shape == wanted.shape, (logits.shape, wanted.shape)
    error = (logits - wanted).abs().max().item()
    print(f"{len(weights)} tensors, {len(logits)} logits, largest difference {error:.2e}")
    if not error < TOLERANCE:
        sys.exit(f"the logits differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
