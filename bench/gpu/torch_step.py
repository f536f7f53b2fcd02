"""The models of Kiln's GPU suite in PyTorch, on the same card, from the same weights over the same tokens.

In: the folder that `gpu` wrote (`models.json`, weights, tokens). Out: one JSON file of raw numbers: steps in eager mode and under
`torch.compile`, in bf16 (autocast) and f32; a copy within the device's memory; products of the 124M model's shapes.
"""

import argparse
import json
import math
import struct
import time
from pathlib import Path

import torch
from torch.nn import functional as F

EPS = 1e-5
ROPE_BASE = 10_000.0
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_safetensors(path):
    """Name -> tensor. The file: length of the header (u64), header (JSON), values."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    values = memoryview(bytearray(data[8 + length :]))
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        out[name] = torch.frombuffer(values[begin:end], dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"]).clone()
    return out


def rope_tables(sizes, device):
    """Cosine and sine of position · base^(−2k/K), both halves alike, [S, K]."""
    S, K = sizes["S"], sizes["K"]
    freq = ROPE_BASE ** (-2.0 * torch.arange(K // 2, dtype=torch.float64) / K)
    angle = torch.outer(torch.arange(S, dtype=torch.float64), freq).repeat(1, 2)
    return angle.cos().float().to(device), angle.sin().float().to(device)


class Gpt(torch.nn.Module):
    """Pre-RMSNorm, half-split rotary positions, grouped queries, SwiGLU, a head of its own or the embedding; parameters under Kiln's names and shapes."""

    def __init__(self, weights, sizes, device):
        super().__init__()
        self.sizes = sizes
        self.names = {name: name.replace(".", "_") for name in weights}
        for name, value in weights.items():
            self.register_parameter(self.names[name], torch.nn.Parameter(value.to(device)))
        cos, sin = rope_tables(sizes, device)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def w(self, name):
        return getattr(self, self.names[name])

    def rope(self, x):
        half = x.shape[-1] // 2
        rotated = torch.cat([-x[..., half:], x[..., :half]], -1)
        return (x * self.cos + rotated * self.sin).to(x.dtype)

    def attention(self, x, at):
        D, G, R, K = (self.sizes[n] for n in "DGRK")
        batch, length, _ = x.shape
        heads = lambda w, n: (x @ w.reshape(D, n * K)).view(batch, length, n, K).transpose(1, 2)
        q = self.rope(heads(self.w(at + "wq"), G * R))
        k = self.rope(heads(self.w(at + "wk"), G))
        v = heads(self.w(at + "wv"), G)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=R > 1)
        return o.transpose(1, 2).reshape(batch, length, G * R * K) @ self.w(at + "wo").reshape(G * R * K, D)

    def swiglu(self, x, at):
        return (F.silu(x @ self.w(at + "gate")) * (x @ self.w(at + "up"))) @ self.w(at + "down")

    def forward(self, ids, targets):
        D = self.sizes["D"]
        norm = lambda x, name: F.rms_norm(x, (D,), self.w(name), EPS)
        x = F.embedding(ids, self.w("trunk.emb"))
        for i in range(self.sizes["L"]):
            at = f"trunk.blocks.{i}."
            x = x + self.attention(norm(x, at + "n1"), at + "attn.")
            x = x + self.swiglu(norm(x, at + "n2"), at + "mlp.")
        head = self.w("head" if "head" in self.names else "trunk.emb")
        logits = norm(x, "trunk.nf") @ head.T
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)


class Run:
    """A model with its optimizer and its tokens."""

    def __init__(self, recipe, entry, folder, precision, compiled, device, weights=None):
        sizes = entry["sizes"]
        self.recipe, self.device, self.precision = recipe, device, precision
        self.shape = (sizes["B"], sizes["S"])
        raw = (folder / entry["tokens"]).read_bytes()
        self.tokens = torch.frombuffer(bytearray(raw), dtype=torch.int32).long()
        model = Gpt(weights or read_safetensors(folder / entry["weights"]), sizes, device)
        self.params = list(model.parameters())
        groups = [
            {"params": [p for p in self.params if p.ndim >= 2], "weight_decay": recipe["weight_decay"]},
            {"params": [p for p in self.params if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe["lr"], betas=recipe["betas"], eps=recipe["eps"], fused=True)
        self.model = torch.compile(model) if compiled else model
        self.at = 0

    def step(self):
        """Enqueues a step; gives its loss on the device."""
        n = self.shape[0] * self.shape[1]
        window = self.tokens[self.at * n : (self.at + 1) * n + 1].to(self.device, non_blocking=True)
        self.at += 1
        ids, targets = window[:-1].view(self.shape), window[1:].view(self.shape)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.model(ids, targets)
        loss.backward()
        if self.recipe["clip"] is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.recipe["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def block(self, steps):
        """Seconds of some steps, and the loss of the last; reading it waits for all."""
        begin = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        return time.perf_counter() - begin, loss.item()


def timed_steps(recipe, entry, folder, mode, device):
    precision = entry["precision"]
    run = Run(recipe, entry, folder, precision, mode == "compile", device)
    protocol = entry["protocol"]
    begin = time.perf_counter()
    _, loss = run.block(protocol["warm_up"])
    warm_up = time.perf_counter() - begin
    seconds, losses = [], [loss]
    for _ in range(protocol["blocks"]):
        elapsed, loss = run.block(protocol["steps_per_block"])
        seconds.append(elapsed)
        losses.append(loss)
    tokens = run.shape[0] * run.shape[1]
    rate = tokens * protocol["steps_per_block"] / sorted(seconds)[len(seconds) // 2]
    print(f"{entry['name']} in {precision}, {mode}: {rate:.0f} tokens/s, loss {losses[-1]:.4f} after {run.at} steps", flush=True)
    return {
        "model": entry["name"],
        "precision": precision,
        "mode": mode,
        "tokens_per_step": tokens,
        "steps_per_block": protocol["steps_per_block"],
        "seconds": seconds,
        "tokens_per_second": rate,
        "losses": losses,
        "steps": run.at,
        "warm_up_seconds": warm_up,
        "bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def sampled(device, call, repeats, samples=5):
    """Seconds of a call, `samples` times: the mean of `repeats` between two waits, after one that may compile."""
    call()
    out = []
    for _ in range(samples):
        wait(device)
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        wait(device)
        out.append((time.perf_counter() - begin) / repeats)
    return out


def copy(device, quick):
    elements = (1 << 20 if quick else 1 << 30) // 4
    x = torch.ones(elements, device=device)
    y = torch.empty_like(x)
    seconds = sampled(device, lambda: y.copy_(x), 2 if quick else 20)
    rate = 2 * 4 * elements / sorted(seconds)[len(seconds) // 2] / 1e9
    print(f"copy of {4 * elements >> 20} MB: {rate:.1f} GB/s read and written", flush=True)
    return {"bytes": 4 * elements, "seconds": seconds, "gb_per_second": rate}


def products(models, device, quick):
    """Products of the first two models as matrices: [rows, inner] · [inner, columns]."""
    return [row for entry in models[:2] for row in products_of(entry["sizes"], entry["precision"], device, quick)]


def products_of(sizes, precision, device, quick):
    rows = sizes["B"] * sizes["S"]
    D, H, hidden, V = sizes["D"], sizes["G"] * sizes["R"] * sizes["K"], sizes["F"], sizes["V"]
    shapes = {"q, k, v": (rows, D, H), "o": (rows, H, D), "gate, up": (rows, D, hidden), "down": (rows, hidden, D), "head": (rows, D, V)}
    out, dtype = [], {"bf16": torch.bfloat16, "f32": torch.float32}[precision]
    for name, (m, k, n) in shapes.items():
        a = torch.randn(m, k, device=device, dtype=dtype)
        b = torch.randn(k, n, device=device, dtype=dtype)
        seconds = sampled(device, lambda: a @ b, 2 if quick else 20)
        rate = 2.0 * m * k * n / sorted(seconds)[len(seconds) // 2] / 1e12
        print(f"product {name} {m}x{k}x{n} in {precision}: {rate:.2f} TFLOP/s", flush=True)
        out.append({"name": name, "shape": [m, k, n], "precision": precision, "seconds": seconds, "tflops": rate})
    return out


def attempt(failures, name, call):
    """The value of a call, or none: its failure is noted and the rest goes on."""
    try:
        return call()
    except Exception as e:  # noqa: BLE001: anything that a driver or a compiler throws
        failures[name] = f"{type(e).__name__}: {e}"[:2000]
        print(f"FAILED {name}: {failures[name].splitlines()[0]}", flush=True)
        return None


def fresh(device):
    """Forgets compiled code and returns cached memory, so that runs do not share either."""
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def random_weights(sizes):
    """Weights of the right shapes, for probing."""
    D, G, R, K, hidden, V = (sizes[n] for n in "DGRKFV")
    shapes = {"trunk.emb": (V, D), "trunk.nf": (D,)}
    for i in range(sizes["L"]):
        at = f"trunk.blocks.{i}."
        shapes |= {at + "n1": (D,), at + "n2": (D,), at + "attn.wq": (D, G, R, K), at + "attn.wk": (D, G, K)}
        shapes |= {at + "attn.wv": (D, G, K), at + "attn.wo": (G, R, K, D)}
        shapes |= {at + "mlp.gate": (D, hidden), at + "mlp.up": (D, hidden), at + "mlp.down": (hidden, D)}
    return {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}


def probe(device, most):
    """Prints the largest power of two up to `most` at which a training step of the 124M model in bf16 fits."""
    sizes = {"S": 1024, "D": 768, "G": 12, "R": 1, "K": 64, "F": 2048, "V": 50304, "L": 12}
    batch = 1 << int(math.log2(most))
    while batch >= 1:
        try:
            model = Gpt(random_weights(sizes), sizes, device)
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)
            for _ in range(2):
                ids = torch.zeros(batch, sizes["S"], dtype=torch.long, device=device)
                with torch.autocast(device.type, torch.bfloat16):
                    loss = model(ids, ids)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            wait(device)
            break
        except torch.OutOfMemoryError:
            model = optimizer = ids = loss = None
            fresh(device)
            batch //= 2
    print(batch)


def warm(recipe, which, folder, device):
    """Two steps of some models under `torch.compile`, from random weights over zeros."""
    for i in which:
        entry = recipe["models"][i]
        sizes, tokens = entry["sizes"], f"warm-{i}.i32"
        (folder / tokens).write_bytes(bytes(4 * (2 * sizes["B"] * sizes["S"] + 1)))
        run = Run(recipe, entry | {"tokens": tokens}, folder, entry["precision"], True, device, random_weights(sizes))
        run.block(2)
        run = None
        fresh(device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder that `gpu` wrote")
    parser.add_argument("--out", type=Path, default=Path("torch.json"), help="file of the numbers")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--batch", type=int, help="for --probe the most sequences of a batch")
    parser.add_argument("--warm", type=int, nargs="+", help="compile these models once, so that a later run finds their code in the cache")
    parser.add_argument("--mode", choices=["eager", "compile"], action="append", help="only this one")
    parser.add_argument("--quick", action="store_true", help="a dry run: small copies and products")
    parser.add_argument("--probe", action="store_true", help="print the largest batch that fits, and nothing else")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        # No TF32: f32 means f32, as in Kiln. The setting is in the file.
        torch.set_float32_matmul_precision("highest")
    if args.probe:
        return probe(device, args.batch or 64)
    recipe = json.loads((args.weights / "models.json").read_text())
    failures, steps = {}, []
    if args.warm:
        return warm(recipe, args.warm, args.weights, device)
    print(f"PyTorch {torch.__version__} on {device}", flush=True)
    result = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "date": int(time.time()),
        "quick": args.quick,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "copy": attempt(failures, "copy", lambda: copy(device, args.quick)),
        "products": attempt(failures, "products", lambda: products(recipe["models"], device, args.quick)),
        "steps": steps,
        "failures": failures,
    }
    for entry in recipe["models"]:
        for mode in args.mode or ["eager", "compile"]:
            fresh(device)
            name = f"step-{entry['name']}-{entry['precision']}-{mode}"
            row = attempt(failures, name, lambda: timed_steps(recipe, entry, args.weights, mode, device))
            steps.extend([row] if row else [])
            args.out.write_text(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
