"""Loads a state that Kiln saved and writes the logits of this folder's own model.

    python logits.py STATE.safetensors IDS.safetensors OUT.safetensors

IDS holds `ids` i32[B, S] and OUT gets `logits` f32[B, S, V]. A state also holds moments and counters; the parameters are those
whose names start with `trunk.`.
"""

import sys

import torch
from safetensors.torch import load_file, save_file

import model


def main():
    state, ids, out = sys.argv[1:4]
    tensors = load_file(state)
    params = {n: t.double() for n, t in tensors.items() if n.startswith("trunk.")}
    n_layers = len({n.split(".")[2] for n in params if n.startswith("trunk.blocks.")})
    wanted = load_file(ids)["ids"].long()
    with torch.no_grad():
        save_file({"logits": model.logits(wanted, params, n_layers).float()}, out)


if __name__ == "__main__":
    main()
