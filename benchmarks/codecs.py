"""How fast each codec is on one core, beside a copy of the same memory, and what it sends.

Codes and decodes one block of float32 gradient over and over, on one thread; codecs and the copy
take turns. A speed is that of the float32 gradient, in Gbit/s, of the median round. Time is what
the thread had of its core, so that other processes count by the caches and memory that they use,
and no more. Prints a table, and one JSON object on the last line. See
``python benchmarks/codecs.py --help``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from elasticps.api.job_codec import JobCodec, load_codec

CODECS = [
    "bf16",
    "fp16",
    "int8",
    "sign",
    "top-k:ratio=0.01",
    "top-k:ratio=0.01+int8",
    "random-k:ratio=0.01",
    "power-sgd:rank=4",
]
SEED = 1


def timed(act: Callable[[], object]) -> float:
    begun = time.thread_time()
    act()
    return time.thread_time() - begun


@dataclass
class Times:
    """Seconds of each round."""

    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    nbytes: int = 0
    error: float = 0.0

    def run(self, codec: JobCodec, gradient: torch.Tensor) -> None:
        begun = time.thread_time()
        coded = codec.encode(gradient, SEED)
        coded_at = time.thread_time()
        decoded = codec.decode(coded, gradient.numel())
        self.encode.append(coded_at - begun)
        self.decode.append(time.thread_time() - coded_at)
        self.nbytes = len(coded)
        if not self.error:
            self.error = float((decoded - gradient).norm() / gradient.norm())


def measure(texts: list[str], numel: int, rounds: int) -> dict[str, object]:
    torch.set_num_threads(1)
    gradient = torch.randn(numel, generator=torch.Generator().manual_seed(SEED))
    copied = torch.empty_like(gradient)
    codecs = {text: load_codec(text) for text in texts}
    times = {text: Times() for text in texts}
    copies: list[float] = []
    for _ in range(rounds):
        copies.append(timed(lambda: copied.copy_(gradient)))
        for text, codec in codecs.items():
            assert codec is not None
            times[text].run(codec, gradient)

    def gbit_per_s(seconds: list[float]) -> float:
        return round(32 * numel / statistics.median(seconds) / 1e9, 2)

    return {
        "gradient_bytes": 4 * numel,
        "copy_gbit_per_s": gbit_per_s(copies),
        "codecs": {
            text: {
                "encode_gbit_per_s": gbit_per_s(item.encode),
                "decode_gbit_per_s": gbit_per_s(item.decode),
                "both_gbit_per_s": gbit_per_s(
                    [sum(pair) for pair in zip(item.encode, item.decode, strict=True)]
                ),
                "bytes": item.nbytes,
                "relative_error": round(item.error, 5),
            }
            for text, item in times.items()
        },
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("codecs", nargs="*", default=CODECS, metavar="CODEC")
    options.add_argument("--mib", type=float, default=4.0, help="float32 gradient of a block, MiB")
    options.add_argument("--rounds", type=int, default=50)
    chosen = options.parse_args()
    result = measure(chosen.codecs, int(chosen.mib * (1 << 18)), chosen.rounds)
    print(f"{'':28}{'encode':>9}{'decode':>9}{'both':>9}  Gbit/s of float32, one core")
    print(f"{'copy':28}{'':>18}{result['copy_gbit_per_s']:9}")
    rows = result["codecs"]
    assert isinstance(rows, dict)
    for text, row in rows.items():
        speeds = "".join(f"{row[f'{key}_gbit_per_s']:9}" for key in ("encode", "decode", "both"))
        share = row["bytes"] / (4 * int(chosen.mib * (1 << 18)))
        print(
            f"{text:28}{speeds}{row['bytes']:12} bytes, {share:7.2%}, error {row['relative_error']}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
