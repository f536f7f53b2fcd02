"""The classifier of tests/outside in PyTorch: linear layers of two widths, residual blocks with layer norm and GELU."""

import torch


def shapes(sizes):
    P, H, M, C = (sizes[n] for n in "PHMC")
    out = {"stem.w": (P, H), "stem.b": (H,)}
    for i in range(sizes["E"]):
        b = f"blocks.{i}."
        out[b + "scale"] = (H,)
        out[b + "shift"] = (H,)
        out[b + "up.w"] = (H, M)
        out[b + "up.b"] = (M,)
        out[b + "down.w"] = (M, H)
        out[b + "down.b"] = (H,)
    out["head.w"] = (H, C)
    out["head.b"] = (C,)
    return out


def logits(x, p, n_blocks, eps):
    h = x @ p["stem.w"] + p["stem.b"]
    for i in range(n_blocks):
        b = f"blocks.{i}."
        y = torch.nn.functional.layer_norm(h, h.shape[-1:], p[b + "scale"], p[b + "shift"], eps)
        y = torch.nn.functional.gelu(y @ p[b + "up.w"] + p[b + "up.b"])
        h = h + y @ p[b + "down.w"] + p[b + "down.b"]
    return h @ p["head.w"] + p["head.b"]


def loss(x, target, p, n_blocks, eps):
    return torch.nn.functional.cross_entropy(logits(x, p, n_blocks, eps), target)
