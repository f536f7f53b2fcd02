"""Rates of the products in `products.json`, in GFLOP/s, as a JSON list; the median of nine samples of each.

In: the folder with the file. Layouts: nn, nt and tn, as in `bench/src/host/products.rs`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

SAMPLES = 9


def rate(product):
    m, n, k = product["m"], product["n"], product["k"]
    a = torch.full((k, m), 0.5).T if product["layout"] == "tn" else torch.full((m, k), 0.5)
    b = torch.full((n, k), 0.5).T if product["layout"] == "nt" else torch.full((k, n), 0.5)
    out = torch.empty(m, n)
    torch.mm(a, b, out=out)
    seconds = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - begin)
    return 2.0 * m * n * k / statistics.median(seconds) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps([rate(p) for p in json.loads((args.folder / "products.json").read_text())]))


if __name__ == "__main__":
    main()
