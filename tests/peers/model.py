"""The GPT of the book in PyTorch: pre-RMSNorm, half-split rotary positions, grouped-query attention, SwiGLU, tied head.

Parameters are a flat dictionary under Kiln's own names and shapes, so a state of either side fits the other.
"""

import math

import torch

EPS = 1e-5
ROPE_BASE = 10_000.0


def shapes(sizes):
    """Path -> shape, in the order of the layers' arguments."""
    D, G, R, K, F, V = (sizes[n] for n in "DGRKFV")
    out = {"trunk.emb": (V, D)}
    for i in range(sizes["L"]):
        b = f"trunk.blocks.{i}."
        out[b + "n1"] = (D,)
        out[b + "n2"] = (D,)
        out[b + "attn.wq"] = (D, G, R, K)
        out[b + "attn.wk"] = (D, G, K)
        out[b + "attn.wv"] = (D, G, K)
        out[b + "attn.wo"] = (G, R, K, D)
        out[b + "mlp.gate"] = (D, F)
        out[b + "mlp.up"] = (D, F)
        out[b + "mlp.down"] = (F, D)
    out["trunk.nf"] = (D,)
    return out


def rms_norm(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w


def rope(x):
    """Rotates (x[k], x[k + K/2]) by position · base^(−2k/K); axes [.., S, K]."""
    S, K = x.shape[-2:]
    freq = ROPE_BASE ** (-2.0 * torch.arange(K // 2, dtype=torch.float64) / K)
    angle = torch.outer(torch.arange(S, dtype=torch.float64), freq).repeat(1, 2).to(x.dtype)
    rotated = torch.cat([-x[..., K // 2 :], x[..., : K // 2]], -1)
    return x * angle.cos() + rotated * angle.sin()


def weights(q, k):
    """Causal: q [B, G, R, S, K], k [B, G, S, K]."""
    S, K = q.shape[-2:]
    scores = torch.einsum("bgrsk,bgtk->bgrst", q, k) / math.sqrt(K)
    later = torch.triu(torch.ones(S, S, dtype=torch.bool), 1)
    return scores.masked_fill(later, -math.inf).softmax(-1)


def attend(q, k, v):
    return torch.einsum("bgrst,bgtk->bgrsk", weights(q, k), v)


class Exact:
    """Full precision: roundings do nothing."""

    @staticmethod
    def value(x):
        return x

    @staticmethod
    def param(w):
        return w

    attend = staticmethod(attend)


class _RoundBoth(torch.autograd.Function):
    """A value in bf16: rounded forward; its cotangent, summed over all readers, is rounded once."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g.bfloat16().to(g.dtype)


class _RoundForward(torch.autograd.Function):
    """A bf16 copy of an f32 master: its gradient stays f32."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g


class _RoundedAttend(torch.autograd.Function):
    """Attention whose result is rounded, and whose derivative reads the result as it is stored (Dao et al. 2022, algorithm 4):
    with P = softmax(S), the row sums of P∘dP are those of o∘do."""

    @staticmethod
    def forward(ctx, q, k, v):
        o = attend(q, k, v).bfloat16().to(q.dtype)
        ctx.save_for_backward(q, k, v, o)
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, o = ctx.saved_tensors
        do = do.bfloat16().to(do.dtype)
        p, scale = weights(q, k), q.shape[-1] ** -0.5
        dp = torch.einsum("bgrsk,bgtk->bgrst", do, v)
        ds = p * (dp - (o * do).sum(-1, keepdim=True)) * scale
        dq = torch.einsum("bgrst,bgtk->bgrsk", ds, k)
        dk = torch.einsum("bgrst,bgrsk->bgtk", ds, q)
        return dq, dk, torch.einsum("bgrst,bgrsk->bgtk", p, do)


class Bf16:
    """One explicit cast to bf16 per operation's output; arithmetic between casts in f32."""

    value = staticmethod(_RoundBoth.apply)
    param = staticmethod(_RoundForward.apply)
    attend = staticmethod(_RoundedAttend.apply)


def attention(x, p, at, c):
    wq, wk, wv, wo = (c.param(p[at + n]) for n in ("wq", "wk", "wv", "wo"))
    q = c.value(rope(c.value(torch.einsum("bsd,dgrk->bgrsk", x, wq))))
    k = c.value(rope(c.value(torch.einsum("bsd,dgk->bgsk", x, wk))))
    v = c.value(torch.einsum("bsd,dgk->bgsk", x, wv))
    return c.value(torch.einsum("bgrsk,grkd->bsd", c.attend(q, k, v), wo))


def swiglu(x, p, at, c):
    gate, up, down = (c.param(p[at + n]) for n in ("gate", "up", "down"))
    h = c.value(c.value(torch.nn.functional.silu(c.value(x @ gate))) * c.value(x @ up))
    return c.value(h @ down)


def block(x, p, at, c=Exact):
    x = c.value(x + attention(c.value(rms_norm(x, c.param(p[at + "n1"]))), p, at + "attn.", c))
    return c.value(x + swiglu(c.value(rms_norm(x, c.param(p[at + "n2"]))), p, at + "mlp.", c))


def trunk(ids, p, n_layers):
    x = p["trunk.emb"][ids]
    for i in range(n_layers):
        x = block(x, p, f"trunk.blocks.{i}.")
    return rms_norm(x, p["trunk.nf"])


def logits(ids, p, n_layers):
    return trunk(ids, p, n_layers) @ p["trunk.emb"].T


def loss(ids, targets, p, n_layers):
    """Mean over the targets that are not negative."""
    flat = logits(ids, p, n_layers).flatten(0, 1)
    return torch.nn.functional.cross_entropy(flat, targets.flatten(), ignore_index=-1)
