"""One markdown table of both sides: `table.py kiln.json [torch.json] [--out FILE.md]`.

In: the files of raw numbers of `gpu` and of `torch_step.py`. Out: a markdown file beside the first, and the same on the terminal.
Medians are of the raw samples; a ratio above 1 means that Kiln is faster.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

# Rows of kernels that are shown; the file has all.
SHOWN = 40


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows] + [""]


def number(x, digits=2):
    return "–" if x is None else f"{x:,.{digits}f}"


def rate(row):
    """Tokens per second, from the raw samples."""
    return row["tokens_per_step"] * row["steps_per_block"] / statistics.median(row["seconds"])


def spread(row):
    """Half of the range, in percent of the median."""
    s = row["seconds"]
    return 50 * (max(s) - min(s)) / statistics.median(s)


def header(kiln, torch):
    when = time.strftime("%Y-%m-%d", time.gmtime(kiln["date"]))
    lines = [f"# {kiln['identity']}, {when}", ""]
    lines.append(f"Kiln {kiln['kiln']} ({kiln['commit']}) on `{kiln['device']}`.")
    if torch:
        cuda = f", CUDA {torch['cuda']}" if torch["cuda"] else ""
        precision = torch["float32_matmul_precision"]
        lines.append(f"PyTorch {torch['torch']}{cuda} on {torch['device']}; its f32 products are `{precision}`.")
    if kiln["quick"]:
        lines.append("**A dry run at small sizes: its times mean nothing.**")
    return lines + [""]


def checks(parts):
    lines = ["## Is it right?", ""]
    check, train = parts.get("check"), parts.get("train")
    if check:
        wrong = len(check["failures"])
        lines.append(
            f"- {check['kernels']} kernels of layers in {check['trials']} trials and {check['operations']} library operations "
            f"against the f64 interpreter: {wrong} failures."
        )
        lines += [f"  - {failure}" for failure in check["failures"]]
    if train:
        lines.append(
            f"- {len(train['device_loss'])} steps of XS beside the host: loss within {train['loss_difference']:.1e}, gradient norm within "
            f"{train['norm_difference']:.1e}, relative; loss {train['device_loss'][0]:.4f} → {train['device_loss'][-1]:.4f}."
        )
    return lines + [""]


def steps(parts, torch):
    peers = {(r["model"], r["precision"], r["mode"]): r for r in (torch or {}).get("steps", [])}
    rows, losses = [], []
    for part in parts.values():
        if "tokens_per_second" not in part:
            continue
        key = (part["model"], part["precision"])
        eager, compiled = peers.get((*key, "eager")), peers.get((*key, "compile"))
        per = lambda r: number(rate(r), 0) if r else "–"
        ratio = number(rate(part) / rate(compiled)) if compiled else "–"
        rows.append([*key, part["tokens_per_step"], per(part), f"±{spread(part):.1f} %", per(eager), per(compiled), ratio])
        loss = lambda r: number(r["losses"][-1], 4) if r else "–"
        losses.append([*key, part["steps"], number(part["losses"][-1], 4), loss(eager), loss(compiled)])
    lines = ["## Training steps", ""]
    lines += table(["model", "precision", "tokens a step", "Kiln, tokens/s", "", "eager", "`torch.compile`", "Kiln / compile"], rows)
    lines += ["Loss after all steps, from the same weights over the same tokens:", ""]
    return lines + table(["model", "precision", "steps", "Kiln", "eager", "`torch.compile`"], losses)


def kernels(parts, torch):
    timed = parts.get("kernels")
    if not timed:
        return []
    ours, theirs = timed["copy"], (torch or {}).get("copy")
    copies = [c["gb_per_second"] for c in (ours, theirs) if c]
    best = max(copies, default=None)
    total = sum(sum(r["seconds"]) for r in timed["rows"])
    lines = [f"## Launches of {timed['model']} in {timed['precision']}", ""]
    lines.append(
        f"One after the other {1e3 * total:.2f} ms. Copy, read and written: Kiln {number(ours and ours['gb_per_second'], 1)} GB/s, PyTorch "
        f"{number(theirs and theirs['gb_per_second'], 1)} GB/s; percentages are of the larger."
    )
    lines.append("")
    rows = []
    for r in timed["rows"][:SHOWN]:
        seconds = sum(r["seconds"])
        gb = r["bytes"] / seconds / 1e9
        share = f"{100 * gb / best:.0f} %" if best else "–"
        tflops = number(r["flops"] / seconds / 1e12) if r["flops"] else ""
        rows.append([f"`{r['name']}`", r["phase"], len(r["seconds"]), number(1e3 * seconds, 3), number(gb, 1), share, tflops])
    lines += table(["launch", "phase", "times", "ms in all", "GB/s", "of copy", "TFLOP/s"], rows)
    if torch and torch.get("products"):
        lines += ["PyTorch's products of the same shapes:", ""]
        rows = [[p["name"], "×".join(map(str, p["shape"])), p["precision"], number(p["tflops"])] for p in torch["products"]]
        lines += table(["product", "shape", "precision", "TFLOP/s"], rows)
    return lines


def failures(kiln, torch):
    all = [("Kiln", *f) for f in kiln["failures"].items()] + [("PyTorch", *f) for f in (torch or {}).get("failures", {}).items()]
    if not all:
        return []
    first = lambda text: (text.splitlines() or [""])[0]
    return ["## What failed", ""] + [f"- {side}, {name}: {first(why)}" for side, name, why in all] + [""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln", type=Path)
    parser.add_argument("torch", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    kiln = json.loads(args.kiln.read_text())
    torch = json.loads(args.torch.read_text()) if args.torch and args.torch.exists() else None
    parts = kiln["parts"]
    lines = header(kiln, torch) + checks(parts) + steps(parts, torch) + kernels(parts, torch) + failures(kiln, torch)
    out = args.out or args.kiln.with_suffix(".md")
    text = "\n".join(lines)
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
