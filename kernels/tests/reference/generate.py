"""Reference values from PyTorch for programs: operators with their gradients, and a whole GPT.

Run with PyTorch 2.11 (CPU) and safetensors:  python generate.py
Writes programs.json and gpt_*.safetensors beside this file. Operators are computed in float64 from
float32 data, so that the stored values are exact to float32 and beyond; the GPT trains in float32.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
CASES = []


def shape_text(shape):
    return "[" + ",".join(str(n) for n in shape) + "]"


def numbers(tensor):
    return [float(x) for x in tensor.detach().reshape(-1)]


def case(name, params, nodes, function, ints=(), positive=False, scale=1.0):
    """A program whose loss is the sum of the last node's first output times fixed weights.

    params: name -> shape; nodes: (operator, inputs, attributes, output shapes) in the text form;
    ints: name -> (shape, values); function: dict of tensors -> output.
    """
    generator = torch.Generator().manual_seed(len(CASES) + 1)
    data = {}
    for key, shape in params.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float32) * scale
        if positive:
            value = value.abs() + 0.5
        data[key] = value.double().requires_grad_(True)
    indices = {key: torch.tensor(values).reshape(shape) for key, (shape, values) in dict(ints).items()}
    output = function({**data, **indices})
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float32).double()
    loss = (output * weights).sum()
    loss.backward()

    lines = [f"program {name}", "block main"]
    for key, shape in params.items():
        lines.append(f"param {key} : f32{shape_text(shape)} block=0 decay=false init=zeros")
    for key, (shape, _) in dict(ints).items():
        lines.append(f"input {key} : i32{shape_text(shape)}")
    lines.append(f"input weights : f32{shape_text(output.shape)}")
    for index, (operator, inputs, attributes, shapes) in enumerate(nodes):
        types = ", ".join("f32" + shape_text(shape) for shape in shapes)
        lines.append(f"%{index} = {operator}({inputs}) {attributes} : {types} block=0")
    last, full = len(nodes) - 1, shape_text(output.shape)
    lines.append(f"%{last + 1} = binary(%{last}, weights) kind=mul : f32{full} block=0")
    axes = shape_text(range(len(output.shape)))
    if output.dim() == 0:
        lines.append(f"output loss %{last + 1}")
    else:
        lines.append(f"%{last + 2} = reduce(%{last + 1}) kind=sum axes={axes} keep=false : f32[] block=0")
        lines.append(f"output loss %{last + 2}")
    lines.append(f"output result %{last}")
    CASES.append({
        "name": name,
        "program": "\n".join(lines) + "\n",
        "params": {key: numbers(value) for key, value in data.items()},
        "ints": {key: values for key, (_, values) in dict(ints).items()},
        "weights": numbers(weights),
        "result": numbers(output),
        "loss": float(loss),
        "grads": {key: numbers(value.grad) for key, value in data.items()},
    })


def attention(qkv, heads, causal):
    batch, time, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (part.view(batch, time, heads, width // heads).transpose(1, 2) for part in qkv.split(width, dim=2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.transpose(1, 2).reshape(batch, time, width)


def rms_norm(x, gamma, eps):
    return F.rms_norm(x, (x.shape[-1],), gamma, eps)


def operators():
    tokens = {"tokens": ((2, 3), [1, 4, 0, 4, 4, 2])}
    case("embedding", {"table": (5, 4)}, [("embedding", "table, tokens", "", [(2, 3, 4)])],
         lambda p: F.embedding(p["tokens"], p["table"]), tokens)
    case("linear", {"x": (2, 3, 4), "w": (5, 4)}, [("linear", "x, w", "epilogue=none", [(2, 3, 5)])],
         lambda p: F.linear(p["x"], p["w"]))
    case("linear_bias", {"x": (6, 4), "w": (5, 4), "b": (5,)},
         [("linear", "x, w, b", "epilogue=none", [(6, 5)])], lambda p: F.linear(p["x"], p["w"], p["b"]))
    for form, approximate in (("erf", "none"), ("tanh", "tanh")):
        case(f"linear_gelu_{form}", {"x": (2, 3, 4), "w": (5, 4), "b": (5,)},
             [("linear", "x, w, b", f"epilogue=gelu_{form}", [(2, 3, 5), (2, 3, 5)])],
             lambda p, a=approximate: F.gelu(F.linear(p["x"], p["w"], p["b"]), approximate=a))
    case("linear_residual", {"x": (2, 3, 4), "w": (5, 4), "b": (5,), "r": (2, 3, 5)},
         [("linear", "x, w, b, r", "epilogue=residual", [(2, 3, 5)])],
         lambda p: p["r"] + F.linear(p["x"], p["w"], p["b"]))
    case("linear_residual_plain", {"x": (2, 3, 4), "w": (5, 4), "r": (2, 3, 5)},
         [("linear", "x, w, r", "epilogue=residual", [(2, 3, 5)])],
         lambda p: p["r"] + F.linear(p["x"], p["w"]))
    for ta in (False, True):
        for tb in (False, True):
            a, b = ((4, 3) if ta else (3, 4)), ((5, 4) if tb else (4, 5))
            pick = lambda t, flag: t.transpose(-1, -2) if flag else t
            attributes = f"ta={str(ta).lower()} tb={str(tb).lower()}"
            case(f"matmul_{int(ta)}{int(tb)}", {"a": a, "b": b},
                 [("matmul", "a, b", attributes, [(3, 5)])],
                 lambda p, ta=ta, tb=tb: pick(p["a"], ta) @ pick(p["b"], tb))
            case(f"matmul_batched_{int(ta)}{int(tb)}", {"a": (2, 2) + a, "b": (2, 2) + b},
                 [("matmul", "a, b", attributes, [(2, 2, 3, 5)])],
                 lambda p, ta=ta, tb=tb: pick(p["a"], ta) @ pick(p["b"], tb))
    case("matmul_rows", {"a": (2, 3, 4), "b": (4, 5)},
         [("matmul", "a, b", "ta=false tb=false", [(2, 3, 5)])], lambda p: p["a"] @ p["b"])
    case("layer_norm", {"x": (2, 3, 7), "g": (7,), "b": (7,)},
         [("layer_norm", "x, g, b", "eps=1e-5", [(2, 3, 7), (6,), (6,)])],
         lambda p: F.layer_norm(p["x"], (7,), p["g"], p["b"], 1e-5))
    case("layer_norm_plain", {"x": (3, 5), "g": (5,)},
         [("layer_norm", "x, g", "eps=1e-5", [(3, 5), (3,), (3,)])],
         lambda p: F.layer_norm(p["x"], (5,), p["g"], None, 1e-5))
    case("rms_norm", {"x": (2, 3, 7), "g": (7,)},
         [("rms_norm", "x, g", "eps=1e-6", [(2, 3, 7), (6,)])], lambda p: rms_norm(p["x"], p["g"], 1e-6))
    unary = {
        "neg": torch.neg, "exp": torch.exp, "log": torch.log, "tanh": torch.tanh,
        "sigmoid": torch.sigmoid, "relu": torch.relu, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
        "gelu_erf": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "scale:0.5": lambda x: x * 0.5, "offset:2.0": lambda x: x + 2.0,
    }
    for kind, function in unary.items():
        case("unary_" + kind.split(":")[0], {"x": (3, 5)}, [("unary", "x", f"kind={kind}", [(3, 5)])],
             lambda p, f=function: f(p["x"]), positive=kind in ("log", "sqrt", "rsqrt"))
    binary = {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
        "max": torch.maximum, "min": torch.minimum,
    }
    for kind, function in binary.items():
        for name, a, b in (("", (2, 3, 4), (2, 3, 4)), ("_row", (2, 3, 4), (4,)),
                           ("_column", (2, 1, 1), (2, 3, 4)), ("_middle", (2, 3, 4), (3, 1)),
                           ("_scalar", (2, 3), ())):
            result = torch.broadcast_shapes(a, b)
            case(f"binary_{kind}{name}", {"a": a, "b": b},
                 [("binary", "a, b", f"kind={kind}", [result])],
                 lambda p, f=function: f(p["a"], p["b"]), positive=kind == "div")
    for causal in (False, True):
        word = "causal" if causal else "full"
        case(f"attention_{word}", {"qkv": (2, 5, 24)},
             [("attention", "qkv", f"heads=2 causal={str(causal).lower()}", [(2, 5, 8), (2, 2, 5)])],
             lambda p, c=causal: attention(p["qkv"], 2, c))
    case("softmax", {"x": (3, 5)}, [("softmax", "x", "", [(3, 5)])], lambda p: F.softmax(p["x"], dim=-1))
    targets = {"targets": ((2, 3), [1, -1, 0, 4, 4, 2])}
    case("cross_entropy", {"logits": (2, 3, 5)}, [("cross_entropy", "logits, targets", "", [()])],
         lambda p: F.cross_entropy(p["logits"].view(-1, 5), p["targets"].view(-1), ignore_index=-1), targets)
    case("linear_cross_entropy", {"x": (2, 3, 4), "w": (5, 4)},
         [("linear_cross_entropy", "x, w, targets", "", [()])],
         lambda p: F.cross_entropy(F.linear(p["x"], p["w"]).view(-1, 5), p["targets"].view(-1),
                                   ignore_index=-1), targets)
    case("reshape", {"x": (2, 6)}, [("reshape", "x", "shape=[3,4]", [(3, 4)])], lambda p: p["x"].reshape(3, 4))
    case("permute", {"x": (2, 3, 4)}, [("permute", "x", "axes=[2,0,1]", [(4, 2, 3)])],
         lambda p: p["x"].permute(2, 0, 1))
    case("slice_outer", {"x": (5, 3)}, [("slice", "x", "axis=0 start=1 end=3", [(2, 3)])], lambda p: p["x"][1:3])
    case("slice_inner", {"x": (2, 5, 3)}, [("slice", "x", "axis=1 start=1 end=4", [(2, 3, 3)])],
         lambda p: p["x"][:, 1:4])
    case("pad", {"x": (2, 3)}, [("pad", "x", "axis=1 before=1 after=2", [(2, 6)])], lambda p: F.pad(p["x"], (1, 2)))
    case("concat", {"a": (2, 3), "b": (2, 1), "c": (2, 2)}, [("concat", "a, b, c", "axis=1", [(2, 6)])],
         lambda p: torch.cat([p["a"], p["b"], p["c"]], dim=1))
    case("broadcast", {"x": (3, 1)}, [("broadcast", "x", "shape=[2,3,4]", [(2, 3, 4)])],
         lambda p: p["x"].expand(2, 3, 4))
    reductions = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
    for kind, function in reductions.items():
        for axes, result in (([0], (3, 4)), ([2], (2, 3)), ([1], (2, 4)), ([0, 2], (3,)), ([0, 1, 2], ())):
            case(f"reduce_{kind}_" + "".join(map(str, axes)), {"x": (2, 3, 4)},
                 [("reduce", "x", f"kind={kind} axes={shape_text(axes)} keep=false", [result])],
                 lambda p, f=function, a=axes: f(p["x"], dim=a))
    case("reduce_keep", {"x": (2, 3)}, [("reduce", "x", "kind=sum axes=[1] keep=true", [(2, 1)])],
         lambda p: p["x"].sum(1, keepdim=True))
    for stride, padding, size in ((1, 0, (3, 4)), (2, 1, (3, 3)), (1, 1, (5, 6))):
        case(f"conv2d_{stride}{padding}", {"x": (2, 3, 5, 6), "w": (4, 3, 3, 3), "b": (4,)},
             [("conv2d", "x, w, b", f"stride={stride} padding={padding}", [(2, 4) + size])],
             lambda p, s=stride, q=padding: F.conv2d(p["x"], p["w"], p["b"], stride=s, padding=q))
    case("max_pool", {"x": (2, 2, 5, 5)},
         [("pool2d", "x", "kind=max kernel=3 stride=2 padding=1", [(2, 2, 3, 3)])],
         lambda p: F.max_pool2d(p["x"], 3, 2, 1))
    case("mean_pool", {"x": (2, 2, 4, 6)},
         [("pool2d", "x", "kind=mean kernel=2 stride=2 padding=0", [(2, 2, 2, 3)])],
         lambda p: F.avg_pool2d(p["x"], 2, 2))
    case("mlp", {"x": (4, 3), "w1": (5, 3), "b1": (5,), "w2": (2, 5)},
         [("linear", "x, w1, b1", "epilogue=none", [(4, 5)]), ("unary", "%0", "kind=relu", [(4, 5)]),
          ("linear", "%1, w2", "epilogue=none", [(4, 2)]), ("softmax", "%2", "", [(4, 2)])],
         lambda p: F.softmax(F.linear(F.relu(F.linear(p["x"], p["w1"], p["b1"])), p["w2"]), dim=-1))
    case("shared_use", {"x": (3, 4), "w": (4, 4)},
         [("linear", "x, w", "epilogue=none", [(3, 4)]), ("unary", "%0", "kind=tanh", [(3, 4)]),
          ("binary", "%1, %0", "kind=mul", [(3, 4)]), ("matmul", "%2, w", "ta=false tb=false", [(3, 4)])],
         lambda p: (torch.tanh(F.linear(p["x"], p["w"])) * F.linear(p["x"], p["w"])) @ p["w"])


class Layer(torch.nn.Module):
    def __init__(self, width, heads, bias):
        super().__init__()
        linear = lambda i, o: torch.nn.Linear(i, o, bias=bias)
        self.heads = heads
        self.ln_1 = torch.nn.LayerNorm(width, bias=bias)
        self.attn = torch.nn.ModuleDict({"c_attn": linear(width, 3 * width), "c_proj": linear(width, width)})
        self.ln_2 = torch.nn.LayerNorm(width, bias=bias)
        self.mlp = torch.nn.ModuleDict({"c_fc": linear(width, 4 * width), "c_proj": linear(4 * width, width)})

    def forward(self, x):
        x = x + self.attn["c_proj"](attention(self.attn["c_attn"](self.ln_1(x)), self.heads, True))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Gpt(torch.nn.Module):
    def __init__(self, vocab, time, layers, heads, width, bias, tied):
        super().__init__()
        self.transformer = torch.nn.ModuleDict({
            "wte": torch.nn.Embedding(vocab, width),
            "wpe": torch.nn.Embedding(time, width),
            "h": torch.nn.ModuleList([Layer(width, heads, bias) for _ in range(layers)]),
            "ln_f": torch.nn.LayerNorm(width, bias=bias),
        })
        self.lm_head = torch.nn.Linear(width, vocab, bias=False)
        for name, p in self.named_parameters():
            # Larger than in training, and biases and norms off their usual start, so that an error
            # anywhere shows.
            center = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(p, mean=center, std=0.1)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens, targets):
        x = self.transformer["wte"](tokens) + self.transformer["wpe"].weight[: tokens.shape[1]]
        for layer in self.transformer["h"]:
            x = layer(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)
        return logits, loss


def gpt(name, bias, tied):
    torch.manual_seed(7)
    vocab, time, layers, heads, width, batch, steps, batches = 29, 8, 2, 2, 16, 3, 50, 4
    model = Gpt(vocab, time, layers, heads, width, bias, tied)
    stored = {"param." + key: value.detach().clone() for key, value in model.named_parameters()}
    tokens = torch.randint(0, vocab, (batches, batch, time))
    targets = torch.randint(0, vocab, (batches, batch, time))
    targets[0, 1, 3] = -1
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        logits, loss = model(tokens[step % batches], targets[step % batches])
        loss.backward()
        if step == 0:
            stored["logits"] = logits.detach().clone()
            for key, value in model.named_parameters():
                stored["grad." + key] = value.grad.clone()
        losses.append(loss.item())
        optimizer.step()
    stored["losses"] = torch.tensor(losses)
    stored["tokens"], stored["targets"] = tokens.int(), targets.int()
    numbers = dict(vocab=vocab, time=time, layers=layers, heads=heads, width=width, batch=batch)
    metadata = {key: str(value) for key, value in numbers.items()} | {"torch": torch.__version__}
    save_file({key: value.contiguous() for key, value in stored.items()}, HERE / f"gpt_{name}.safetensors", metadata)


operators()
gpt("tied", bias=True, tied=True)
gpt("untied", bias=False, tied=False)
lines = ",\n".join(json.dumps(entry) for entry in CASES)
(HERE / "programs.json").write_text(f'{{"torch": "{torch.__version__}", "cases": [\n{lines}\n]}}\n')
print(len(CASES), "cases, torch", torch.__version__)
