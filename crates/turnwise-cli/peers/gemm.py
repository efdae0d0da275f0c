"""The fastest f32 matrix products of torch, beside that of `turnwise bench train`: what either side's speed can reach.

python gemm.py --threads 2

Not part of CI.
"""

import argparse
import time

import torch

from common import machine

SHAPES = [(2048, 1024, 1024), (4096, 256, 768), (1024, 1024, 4096), (4096, 256, 8192), (32, 256, 768)]


def best(rows, terms, columns, transposed):
    """FLOP/s of the fastest product within a second, a multiply-add counted as two."""
    a = torch.randn(rows, terms)
    b = torch.randn(columns, terms).t() if transposed else torch.randn(terms, columns)
    a @ b
    began, least = time.perf_counter(), float("inf")
    while time.perf_counter() - began < 1:
        begun = time.perf_counter()
        a @ b
        least = min(least, time.perf_counter() - begun)
    return 2 * rows * terms * columns / least


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    print(machine(settings.threads))
    for shape in SHAPES:
        speeds = [best(*shape, transposed) / 1e9 for transposed in (False, True)]
        print("  {:>5} x {:>4} x {:>4}".format(*shape) + "   {:6.0f} GFLOP/s, transposed {:.0f}".format(*speeds), flush=True)


if __name__ == "__main__":
    main()
