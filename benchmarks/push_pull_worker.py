"""The script of an elasticps worker in the push-pull contests, as a user would write it.

``--socket PATH --nbytes N [--block-bytes N] [--parameters N] [--optimizer NAME]
[--approximate]``: the job's block size is for its submission to say.
"""

from __future__ import annotations

import argparse
import time

import torch

import elasticps
from benchmarks.turns import Turns
from benchmarks.workload import (
    GRADIENTS,
    LR,
    add_size_options,
    first_values,
    gradients,
    most_lost,
    poison,
    size_from,
    wrong_elements,
)


class Model(torch.nn.Module):
    """Some parameters of one size, in all as many elements as ``values`` has."""

    def __init__(self, values: torch.Tensor, parameters: int) -> None:
        super().__init__()
        each = -(-values.numel() // parameters)
        parts = (torch.nn.Parameter(part.clone()) for part in values.split(each))
        self.parts = torch.nn.ParameterList(parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--parameters", type=int, default=1)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--approximate", action="store_true", help="a codec changes what is sent")
    add_size_options(parser)
    options = parser.parse_args()
    size = size_from(options)
    model = Model(first_values(size), options.parameters)
    parameters = list(model.parameters())
    widths = [parameter.numel() for parameter in parameters]
    grads = [gradient.split(widths) for gradient in gradients(size)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with elasticps.join() as run:
        optimizer = run.optimizer(model, options.optimizer, lr=LR)
        done = 0
        with Turns(options.socket, run.rank) as turns:
            for steps in turns:
                seconds, preparing_s = [], 0.0
                for _ in range(steps):
                    preparing = time.thread_time()
                    for parameter, gradient in zip(
                        parameters, grads[done % GRADIENTS], strict=True
                    ):
                        assert parameter.grad is not None
                        parameter.grad.copy_(gradient)
                        if not options.approximate:
                            poison(parameter.data)
                    preparing_s += time.thread_time() - preparing
                    began = time.perf_counter()
                    optimizer.step()
                    seconds.append(time.perf_counter() - began)
                    done += 1
                turns.report(seconds, preparing_s=preparing_s)
            output = torch.cat([parameter.detach() for parameter in parameters])
            if options.optimizer == "sgd":
                lost = most_lost(size, done) if options.approximate else 0.0
                wrong = wrong_elements(output, size, done, lost)
            else:
                wrong = int((~torch.isfinite(output)).sum())
            turns.finished(wrong=wrong, checked=size.numel)


if __name__ == "__main__":
    main()
