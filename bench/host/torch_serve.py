"""The models of Kiln's host suite in PyTorch: trains step by step as the lines of standard input say (see `bench/src/host/serve.rs`).

In: the folder that `host prepare` wrote, the name of a model, `eager` or `compile`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "gpu"))
from torch_step import Run  # noqa: E402: the path is set above


class Cycled(Run):
    """A run whose tokens begin again after the last whole batch."""

    def step(self):
        n = self.shape[0] * self.shape[1]
        self.at %= (len(self.tokens) - 1) // n
        return super().step()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("mode", choices=["eager", "compile"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = json.loads((args.folder / "models.json").read_text())
    entry = next(m for m in recipe["models"] if m["name"] == args.model)
    run = Cycled(recipe, entry, args.folder, entry["precision"], args.mode == "compile", torch.device("cpu"))
    print(json.dumps({"loss": run.block(1)[1]}), flush=True)
    for line in sys.stdin:
        seconds, loss = run.block(int(line))
        print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
