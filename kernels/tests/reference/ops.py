"""Writes `ops.safetensors`: inputs, results and gradients of operators, computed by PyTorch.

    python kernels/tests/reference/ops.py

Written for and run with PyTorch 2.11.0 (CPU) in double precision, stored in single precision, so
that the file holds the exact values rounded once. The version that wrote the file is in its
metadata. Names are `case/tensor`; gradients are `d` and the name of the input, for the gradient
`dy` of the result `y`.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20250101)
torch.set_num_threads(1)
tensors = {}


def rounded(*shape, scale=1.0):
    """Random numbers that single precision holds exactly."""
    return (torch.randn(*shape) * scale).double()


def case(name, f, **inputs):
    """Records `y = f(*inputs)` and the gradients of the inputs that need one."""
    leaves = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in inputs.items()}
    y = f(*leaves.values())
    dy = rounded(*y.shape)
    floats = {key: value for key, value in leaves.items() if value.is_floating_point()}
    gradients = torch.autograd.grad(y, list(floats.values()), dy, allow_unused=True)
    record(name, y=y, dy=dy, **leaves)
    record(name, **{f"d{key}": gradient for key, gradient in zip(floats, gradients) if gradient is not None})


def record(name, **values):
    for key, value in values.items():
        dtype = torch.float32 if value.is_floating_point() else torch.int32
        tensors[f"{name}/{key}"] = value.detach().to(dtype).contiguous()


ROWS = [(1, 1), (3, 17), (5, 64), (33, 50)]

for rows, columns in ROWS:
    shape = f"{rows}x{columns}"
    x = rounded(rows, columns, scale=2.0) + 0.5
    x = x.float().double()
    gamma, beta = rounded(columns), rounded(columns)
    case(f"layer_norm/{shape}",
         lambda x, gamma, beta: F.layer_norm(x, (columns,), gamma, beta, 1e-5),
         x=x, gamma=gamma, beta=beta)
    case(f"layer_norm_no_beta/{shape}",
         lambda x, gamma: F.layer_norm(x, (columns,), gamma, None, 1e-5), x=x, gamma=gamma)
    case(f"rms_norm/{shape}", lambda x, gamma: F.rms_norm(x, (columns,), gamma, 1e-6),
         x=x, gamma=gamma)
    case(f"softmax/{shape}", lambda x: F.softmax(x, -1), x=x)
    for kind in ["sum", "mean", "amax"]:
        for axis in [0, 1]:
            case(f"{kind}{axis}/{shape}", lambda x: getattr(torch, kind)(x, axis), x=x)

case("gelu_exact", lambda x: F.gelu(x), x=rounded(1001, scale=3.0))
case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x=rounded(1001, scale=3.0))

for batch, tokens, heads, dim in [(1, 1, 1, 1), (2, 9, 2, 8), (1, 67, 1, 32), (1, 66, 1, 20)]:
    for causal in [False, True]:
        def attention(qkv):
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            return y.transpose(1, 2)

        kind = "causal" if causal else "full"
        case(f"attention_{kind}/{batch}x{tokens}x{heads}x{dim}", attention,
             qkv=rounded(batch, tokens, 3, heads, dim, scale=1.5))

for rows, classes in [(1, 1), (4, 10), (7, 33)]:
    targets = torch.randint(0, classes, (rows,))
    if rows > 2:
        targets[1] = -1
    logits = rounded(rows, classes, scale=4.0)
    logits.requires_grad_()
    losses = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    mean = F.cross_entropy(logits, targets, ignore_index=-1)
    record(f"cross_entropy/{rows}x{classes}", x=logits, targets=targets, losses=losses,
           dx=torch.autograd.grad(mean, logits)[0])

ids = torch.randint(0, 11, (2, 7))
case("embedding", lambda ids, table, positions: F.embedding(ids, table) + positions,
     ids=ids, table=rounded(11, 35), positions=rounded(7, 35))

for m, n, k in [(1, 1, 1), (5, 33, 17), (20, 40, 64)]:
    case(f"linear/{m}x{n}x{k}", F.linear, x=rounded(m, k), w=rounded(n, k), bias=rounded(n))

for name, f in [("neg", torch.neg), ("abs", torch.abs), ("exp", torch.exp), ("tanh", torch.tanh),
                ("sigmoid", torch.sigmoid), ("relu", torch.relu), ("erf", torch.erf),
                ("square", torch.square)]:
    case(f"unary/{name}", f, x=rounded(77, scale=2.0))
for name, f in [("ln", torch.log), ("sqrt", torch.sqrt), ("rsqrt", torch.rsqrt), ("recip", torch.reciprocal)]:
    case(f"unary/{name}", f, x=rounded(77).abs() + 0.125)
for name, f in [("add", torch.add), ("sub", torch.sub), ("mul", torch.mul), ("div", torch.div),
                ("max", torch.maximum), ("min", torch.minimum)]:
    case(f"binary/{name}", f, a=rounded(6, 13), b=rounded(6, 13))
case("binary/pow", torch.pow, a=rounded(6, 13).abs() + 0.25, b=rounded(6, 13))


def optimizer(name, make, steps, decay=0.1):
    p = torch.nn.Parameter(rounded(300).float())
    start = p.detach().clone()
    optimizer = make(p)
    gradients = rounded(steps, 300).float()
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    state = {f"state_{key}": value for key, value in optimizer.state[p].items()
             if torch.is_tensor(value) and value.dim() > 0}
    record(f"optimizer/{name}", p=start, g=gradients, result=p, **state)


optimizer("adamw", lambda p: torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1), 5)
optimizer("adamw_no_decay", lambda p: torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0), 3)
optimizer("sgd", lambda p: torch.optim.SGD([p], lr=0.05, momentum=0.9, weight_decay=0.01), 5)
optimizer("nesterov", lambda p: torch.optim.SGD([p], lr=0.05, momentum=0.9, nesterov=True), 5)

for name, stride, padding, dilation, groups in [
        ("plain", 1, 0, 1, 1), ("padded", 1, 1, 1, 1), ("strided", 2, 1, 1, 1), ("dilated", 1, 2, 2, 1),
        ("grouped", 1, 1, 1, 2), ("depthwise", 2, 1, 1, 4)]:
    case(f"conv2d/{name}",
         lambda x, w, bias: F.conv2d(x, w, bias, stride, padding, dilation, groups),
         x=rounded(2, 4, 7, 9), w=rounded(8, 4 // groups, 3, 3), bias=rounded(8))
case("conv2d/pointwise", F.conv2d, x=rounded(2, 5, 4, 6), w=rounded(3, 5, 1, 1), bias=rounded(3))
case("max_pool2d", lambda x: F.max_pool2d(x, (3, 2), (2, 2), (1, 1)), x=rounded(2, 3, 7, 8))
case("avg_pool2d", lambda x: F.avg_pool2d(x, (3, 2), (2, 2), (1, 1)), x=rounded(2, 3, 7, 8))

path = pathlib.Path(__file__).with_suffix(".safetensors")
save_file(tensors, path, metadata={"pytorch": torch.__version__})
print(f"{len(tensors)} tensors, {path.stat().st_size} bytes, PyTorch {torch.__version__}")
