"""Writes PyTorch's values for the tier `peers` into the folder given as the only argument.

    python values.py FOLDER

Everything is seeded; two runs write the same bytes. Models and optimizers run in f64 and are stored as f32, so what is kept is
nearer to the truth than any f32 run.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import classifier
import model

STEPS = 20
ADAMW = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def draw(shapes, seed):
    """Non-zero parameters: matrices keep variance, vectors lie around 1."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        if len(shape) == 1:
            out[name] = 1.0 + 0.2 * x
        else:
            out[name] = x * (0.5 if name.endswith("emb") else 1.2 * shape[0] ** -0.5)
        # As f32 holds them: Kiln starts from the same numbers.
        out[name] = out[name].float().double()
    return out


def leaves(params):
    return {n: p.clone().requires_grad_(True) for n, p in params.items()}


def adamw(params, lr, betas, eps, weight_decay):
    """Weight decay on matrices only, as Kiln's groups do."""
    rank = lambda wanted: [p for p in params.values() if (p.ndim >= 2) == wanted]
    groups = [dict(params=rank(True), weight_decay=weight_decay), dict(params=rank(False), weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)


def save(folder, name, tensors, **meta):
    keep = lambda t: t.detach().float() if t.is_floating_point() else t.detach()
    # One entry: the order of several is not fixed.
    about = json.dumps(dict(meta, torch=torch.__version__), sort_keys=True)
    path = folder / f"{name}.safetensors"
    save_file({k: keep(t).contiguous() for k, t in tensors.items()}, path, metadata={"about": about})
    path.chmod(0o644)


def prefixed(prefix, tensors):
    return {f"{prefix}/{n}": t for n, t in tensors.items()}


def gpt(folder, name, sizes, seed):
    B, S, V, L = (sizes[n] for n in "BSVL")
    g = torch.Generator().manual_seed(seed + 1)
    batches = torch.randint(V, (STEPS, B, S + 1), generator=g)
    ids, targets = batches[:, :, :-1].contiguous(), batches[:, :, 1:].contiguous()
    targets[:, 0, : S // 3] = -1  # not counted
    start = draw(model.shapes(sizes), seed)

    p = leaves(start)
    loss = model.loss(ids[0], targets[0], p, L)
    loss.backward()
    grads = {n: x.grad for n, x in p.items()}
    assert all(x.abs().max() > 0 for x in grads.values()), "a gradient that is zero proves nothing"
    values = prefixed("param", start) | prefixed("grad", grads)
    values["logits"] = model.logits(ids[0], p, L)

    p = leaves(start)
    optimizer = adamw(p, **ADAMW)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss(ids[step], targets[step], p, L)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    values |= prefixed("after", p)
    values["ids"], values["targets"] = ids.int(), targets.int()
    values["losses"] = torch.tensor(losses, dtype=torch.float64)
    save(folder, name, values, sizes=sizes, adamw=ADAMW)


def bf16_block(folder):
    sizes = dict(B=2, S=19, D=24, G=2, R=2, K=6, F=40, V=1, L=1)
    at = "trunk.blocks.0."
    start = {n[len(at) :]: x for n, x in draw(model.shapes(sizes), 31).items() if n.startswith(at)}
    g = torch.Generator().manual_seed(32)
    x = torch.randn(sizes["B"], sizes["S"], sizes["D"], generator=g).double()
    # A loss over the block's result as logits: cotangents of both signs and of many sizes.
    targets = torch.randint(sizes["D"], (sizes["B"], sizes["S"]), generator=g)
    values = {"targets": targets.int()} | prefixed("param", start | {"x": x})
    for kind, casts in [("bf16", model.Bf16), ("f32", model.Exact)]:
        p = leaves({n: t.float() for n, t in (start | {"x": x}).items()})
        y = model.block(casts.value(p["x"]), p, "", casts)
        torch.nn.functional.cross_entropy(y.flatten(0, 1), targets.flatten(), reduction="sum").backward()
        values[f"{kind}/y"] = y
        values |= prefixed(f"{kind}/grad", {n: t.grad for n, t in p.items()})
    save(folder, "block_bf16", values, sizes=sizes)


def outside(folder):
    sizes = dict(N=13, P=7, H=11, M=17, C=5, E=3)
    eps = 1e-3
    start = draw(classifier.shapes(sizes), 41)
    g = torch.Generator().manual_seed(42)
    x = torch.randn(STEPS, sizes["N"], sizes["P"], generator=g).double()
    target = torch.randint(sizes["C"], (STEPS, sizes["N"]), generator=g)
    p = leaves(start)
    classifier.loss(x[0], target[0], p, sizes["E"], eps).backward()
    values = {"x": x, "target": target.int()} | prefixed("param", start)
    values |= prefixed("grad", {n: t.grad for n, t in p.items()})
    values["logits"] = classifier.logits(x[0], p, sizes["E"], eps)
    p = leaves(start)
    optimizer = torch.optim.SGD(list(p.values()), lr=0.05, momentum=0.9)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = classifier.loss(x[step], target[step], p, sizes["E"], eps)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    values["losses"] = torch.tensor(losses, dtype=torch.float64)
    save(folder, "outside", values, sizes=sizes, eps=eps, sgd=dict(lr=0.05, momentum=0.9))


def optimizers(folder):
    """A matrix and a vector under given gradients, clipped and stepped."""
    cases = {
        "adamw": (lambda p: adamw(p, **ADAMW), None),
        "adamw_clipped": (lambda p: adamw(p, **ADAMW), 0.7),
        "sgd": (lambda p: torch.optim.SGD(list(p.values()), lr=0.02, momentum=0.9), None),
        "nesterov": (lambda p: torch.optim.SGD(list(p.values()), lr=0.02, momentum=0.9, nesterov=True), 0.7),
    }
    start = draw({"w": (37, 5), "b": (43,)}, 51)
    values = prefixed("start", start)
    g = torch.Generator().manual_seed(52)
    grads = {n: torch.randn((STEPS, *t.shape), generator=g).float().double() * 0.1 for n, t in start.items()}
    values |= prefixed("grads", {n: t.float() for n, t in grads.items()})
    grads = {n: t.float().double() for n, t in grads.items()}
    for name, (make, max_norm) in cases.items():
        p = leaves(start)
        optimizer = make(p)
        norms = []
        for step in range(STEPS):
            for n, t in p.items():
                t.grad = grads[n][step].clone()
            if max_norm is not None:
                norms.append(torch.nn.utils.clip_grad_norm_(list(p.values()), max_norm).item())
            optimizer.step()
        values |= prefixed(name, p)
        if norms:
            values[f"{name}/norms"] = torch.tensor(norms, dtype=torch.float64)
    save(folder, "optimizers", values, adamw=ADAMW, sgd=dict(lr=0.02, momentum=0.9), max_norm=0.7)


def schedules(folder):
    """Rates of PyTorch's schedulers at steps 0..n."""
    from torch.optim import lr_scheduler as sched

    def rates(make, lr, n):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
        scheduler = make(optimizer)
        out = []
        for _ in range(n):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return out

    def warm(then):
        def make(o):
            rise = sched.LinearLR(o, start_factor=1 / 8, end_factor=1.0, total_iters=7)
            return sched.SequentialLR(o, [rise, then(o)], milestones=[8])

        return make

    linear = lambda o: sched.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=30)
    cosine = lambda o: sched.CosineAnnealingLR(o, T_max=30, eta_min=3e-5)
    constant = lambda o: sched.ConstantLR(o, factor=1.0, total_iters=1)
    out = {
        "torch": torch.__version__,
        "constant": rates(constant, 3e-4, 40),
        "linear": rates(linear, 3e-4, 40),
        # PyTorch's cosine rises again after T; Kiln stays, so only steps up to T are kept.
        "cosine": rates(cosine, 3e-4, 31),
        "warmup_linear": rates(warm(linear), 3e-4, 50),
        "warmup_cosine": rates(warm(cosine), 3e-4, 39),
    }
    (folder / "schedules.json").write_text(json.dumps(out, indent=1) + "\n")


def scaler(folder):
    """`torch.amp.GradScaler` on random patterns of overflows: the scale after each update, and the steps that were taken."""
    patterns, longest = 1000, 24
    g = torch.Generator().manual_seed(61)
    draw_int = lambda low, high: int(torch.randint(low, high, (1,), generator=g))
    found = torch.zeros(patterns, longest, dtype=torch.uint8)
    scales = torch.zeros(patterns, longest)
    steps = torch.zeros(patterns, dtype=torch.int32)
    options = torch.zeros(patterns, 4)
    for i in range(patterns):
        # The scale starts near the end of f32 now and then, where growth stops.
        init = [65536.0, 1.0, 2.0**126, 2.0**-60][draw_int(0, 4)]
        growth, backoff = [(2.0, 0.5), (1.5, 0.75), (4.0, 0.25)][draw_int(0, 3)]
        interval = draw_int(1, 6)
        options[i] = torch.tensor([init, growth, backoff, interval])
        kind = dict(init_scale=init, growth_factor=growth, backoff_factor=backoff, growth_interval=interval)
        s = torch.amp.GradScaler("cpu", **kind)
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=1.0)
        share = draw_int(0, 60)
        for t in range(longest):
            overflow = draw_int(0, 100) < share
            s.scale(torch.zeros(1))  # creates the scale
            before = weight.item()
            # Scaled so that a step that is taken moves the weight by one.
            weight.grad = torch.tensor([float("inf")]) if overflow else torch.tensor([-s.get_scale()])
            s.step(optimizer)
            s.update()
            found[i, t] = overflow
            scales[i, t] = s.get_scale()
            steps[i] += weight.item() != before
    assert torch.equal(steps, (found == 0).sum(1).int()), "PyTorch skipped exactly the overflows"
    save(folder, "scaler", dict(found=found, scales=scales, steps=steps, options=options))


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    gpt(folder, "gpt_a", dict(B=2, S=24, D=32, G=2, R=2, K=8, F=48, V=67, L=2), 11)
    gpt(folder, "gpt_b", dict(B=3, S=17, D=28, G=1, R=3, K=20, F=45, V=257, L=3), 21)
    bf16_block(folder)
    outside(folder)
    optimizers(folder)
    schedules(folder)
    scaler(folder)


if __name__ == "__main__":
    main()
