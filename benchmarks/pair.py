"""A contestant of two processes, one that serves and one that asks: what all peers share."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.turns import Turns
from benchmarks.workload import (
    GRADIENTS,
    Size,
    add_size_options,
    first_values,
    gradients,
    poison,
    wrong_elements,
)

Blocks = Sequence[torch.Tensor]
Step = Callable[[Blocks, Blocks], None]
"""Push the gradient, have SGD applied to the value, and read all of it into the output."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--transport", choices=["local", "tcp"], default="local")
    add_size_options(parser)
    return parser.parse_args()


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """Another process that runs ``target(pipe, ...)``; it is to end when the pipe is closed."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=target, args=(theirs, *arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        child.join(5.0)
        if child.is_alive():
            child.kill()
            child.join()


def take_turns(
    path: str,
    size: Size,
    step: Step,
    *,
    prepare: Callable[[], None] = lambda: None,
    apart: bool = False,
    in_place: bool = False,
) -> None:
    """The asking process: steps when told, and the verdict on every element.

    ``prepare`` comes before each step and is not timed. ``apart``: each block has memory of its
    own, for who would otherwise copy it out of the whole. ``in_place``: the output is the value.
    """
    grads = gradients(size)
    gradient, output = torch.empty(size.numel), first_values(size)
    sent, received = size.blocks(gradient), size.blocks(output)
    if apart:
        sent = [block.clone() for block in sent]
    done = 0
    with Turns(path) as turns:
        for steps in turns:
            seconds, preparing_s = [], 0.0
            for _ in range(steps):
                preparing = time.thread_time()
                for block, of_it in zip(sent, size.blocks(grads[done % GRADIENTS]), strict=True):
                    block.copy_(of_it)
                if not in_place:
                    poison(output)
                prepare()
                preparing_s += time.thread_time() - preparing
                began = time.perf_counter()
                step(sent, received)
                seconds.append(time.perf_counter() - began)
                done += 1
            turns.report(seconds, preparing_s=preparing_s)
        turns.finished(wrong=wrong_elements(output, size, done), checked=size.numel)


def until_closed(pipe: Connection) -> None:
    """Wait until the asking process is through."""
    try:
        pipe.recv()
    except EOFError:
        return
