"""``python -m tests.fuzz wire --runs 20000``: search for bytes that break what must hold of them.

An input that does is written to the corpus as ``find-...``, its traceback is shown, and the exit
code is not 0. Mend the product, keep the file: ``test_fuzz.py`` goes through the corpus each time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

from tests.fuzz import CORPUS

READERS = {
    "wire": ["elasticps.wire", "elasticps.server.tensor_block", "elasticps.core"],
    "checkpoint": ["elasticps.checkpoint", "elasticps.core"],
}
"""Whose branches guide the search."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=list(READERS))
    parser.add_argument("--runs", type=int, default=-1, help="Inputs to try; -1: without end.")
    parser.add_argument("--seconds", type=int, default=0, help="0: without end.")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time.")
    parser.add_argument("--finds", type=Path, help="Where a find goes.  [default: the corpus]")
    given = parser.parse_args()
    corpus = CORPUS / given.target
    with atheris.instrument_imports(include=READERS[given.target], enable_loader_override=False):
        target = importlib.import_module(f"tests.fuzz.target_{given.target}")
    # What is found on the way goes here; only what breaks something goes to the corpus.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as found:
        options = {
            "runs": given.runs,
            "max_total_time": given.seconds,
            "seed": given.seed,
            "max_len": 8192,
            "timeout": 20,
            "rss_limit_mb": 4096,
            "print_final_stats": 1,
            "artifact_prefix": f"{given.finds or corpus}/find-",
        }
        flags = [f"-{key}={value}" for key, value in options.items()]
        atheris.Setup([sys.argv[0], *flags, found, str(corpus)], target.one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
