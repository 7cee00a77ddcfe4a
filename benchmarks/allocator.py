"""What it brings to let the C library keep freed memory (`dsv2.training.machine.keep_freed_memory`).

    python -m benchmarks.allocator [--rounds 7]

Trains the tiny preset on one thread in fresh processes, with and without in turn, since the setting belongs to a
process. Prints medians of tokens/s, the spread and the median ratio.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

BATCH, LENGTH, STEPS = 8, 128, 40


def child(keep: bool) -> None:
    import dsv2
    from dsv2.training.machine import keep_freed_memory

    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    run = dsv2.load()
    model = run.model.build()
    optimizer = run.optim.build(model)
    tokens = torch.randint(0, run.model.vocab_size, (BATCH, LENGTH + 1))
    for step in range(STEPS + 5):
        if step == 5:
            started = time.perf_counter()
        logits = model(tokens[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(STEPS * BATCH * LENGTH / (time.perf_counter() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", choices=("keep", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child == "keep")
        return
    rates: dict[str, list[float]] = {"plain": [], "keep": []}
    for _ in range(arguments.rounds):
        for side, seen in rates.items():
            command = [sys.executable, "-m", "benchmarks.allocator", "--child", side]
            seen.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    for side, seen in rates.items():
        print(f"{side:>6}: {statistics.median(seen):8,.0f} tokens/s  ({min(seen):,.0f} to {max(seen):,.0f})")
    ratios = [keep / plain for keep, plain in zip(rates["keep"], rates["plain"], strict=True)]
    print(f" ratio: {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
