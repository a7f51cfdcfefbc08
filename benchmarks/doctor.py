"""The doctor's two inner loops against their plain forms, and its levels against each other, in one process.

    python benchmarks/doctor.py [--images DIR] [--hashes 16000]

Prints the time of the search for near hashes next to a loop over all pairs, and with a folder of images the time of
looking at headers and contents alone next to decoding them too, and of one thread next to two.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fanet_lightning.doctor.checks import examine_files
from fanet_lightning.doctor.duplicates import NEAR_BITS, hamming_pairs, near_pairs


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def all_pairs(hashes: list[int], most: int) -> list[tuple[int, int]]:
    return [(i, j) for i, a in enumerate(hashes) for j, b in enumerate(hashes) if i < j and (a ^ b).bit_count() <= most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=Path, help="folder of .jpg files, looked through with its sub-folders")
    parser.add_argument("--hashes", type=int, default=16_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    few = rng.integers(0, 2**64, 2_000, dtype=np.uint64)
    plain = seconds(lambda: all_pairs([int(value) for value in few], NEAR_BITS))
    fast = min(seconds(lambda: hamming_pairs(few, few, NEAR_BITS)) for _ in range(3))
    assert [tuple(pair) for pair in hamming_pairs(few, few, NEAR_BITS).tolist()] == all_pairs(few.tolist(), NEAR_BITS)
    print(f"{len(few):,} hashes, all pairs: loop {plain:.2f} s, tiles {fast:.3f} s, {plain / fast:.0f} times faster")
    many = rng.integers(0, 2**64, options.hashes, dtype=np.uint64)
    took = seconds(lambda: hamming_pairs(many, many, NEAR_BITS))
    print(f"{len(many):,} hashes, each pair once: tiles {took:.2f} s")
    if options.images is None:
        return
    paths = sorted(options.images.rglob("*.jpg"))
    for path in paths:
        path.read_bytes()  # into the file cache: what is compared is the work
    headers = seconds(lambda: examine_files(paths, decode=False))
    decoded = seconds(lambda: examine_files(paths, decode=True))
    several = seconds(lambda: examine_files(paths, decode=True, workers=2))
    facts = examine_files(paths, decode=True, workers=2)
    thumbnails = np.stack([fact.thumbnail for fact in facts.values() if fact.thumbnail is not None])
    copies = seconds(lambda: near_pairs(thumbnails))
    print(f"{len(paths):,} images: headers {headers:.1f} s, decoded {decoded:.1f} s, {decoded / headers:.1f} times")
    print(f"decoded in two threads {several:.1f} s, {decoded / several:.2f} times faster; near copies {copies:.2f} s")


if __name__ == "__main__":
    main()
