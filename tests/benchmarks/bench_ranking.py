"""Exact recall both ways in blocks: time per pair, peak memory, and against sorting the whole matrix.
whole matrix.

python tests/benchmarks/bench_ranking.py [captions = videos of the largest case, 20000]
"""

import resource
import sys
import time

import torch

from vopcore.metrics import evaluate

SIZE = 64  # of an embedding


def embeddings(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(num, SIZE), dim=1)
    return text, torch.nn.functional.normalize(text + 0.35 * torch.randn(num, SIZE), dim=1)


def in_blocks(num: int) -> float:
    """CPU seconds of `evaluate`, the products included."""
    text, video = embeddings(num)
    ids = [str(number) for number in range(num)]
    started = time.process_time()
    evaluate(lambda rows: text[rows] @ video.T, ids, ids)
    return time.process_time() - started


def by_sorting(num: int) -> float:
    """CPU seconds of the field's way: the whole matrix, argsort twice, both directions."""
    text, video = embeddings(num)
    started = time.process_time()
    similarity = text @ video.T
    for scores in (similarity, similarity.T):
        scores.argsort(dim=1, descending=True).argsort(dim=1).diagonal()
    return time.process_time() - started


def main() -> None:
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    torch.set_num_threads(1)
    in_blocks(500)
    nanoseconds = {}
    for num in (largest // 4, largest // 2, largest):
        seconds = in_blocks(num)
        nanoseconds[num] = 1e9 * seconds / num**2
        print(f"{num:>7,} x {num:,}: {seconds:7.1f} s CPU, {nanoseconds[num]:5.1f} ns per pair")
    print(f"time per pair, largest / smallest: {nanoseconds[largest] / nanoseconds[largest // 4]:.2f}")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    print(f"sorting / blocks at 4,000: {by_sorting(4000) / in_blocks(4000):.1f}")


if __name__ == "__main__":
    main()
