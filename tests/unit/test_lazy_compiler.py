"""Torch's compiler is left unloaded by training alone, and is the real one for who compiles."""

from __future__ import annotations

import subprocess
import sys

TRAINED_THEN_COMPILED = """
import sys

import torch

from elasticps.api.lazy_compiler import COMPILER, leave_compiler_unloaded

leave_compiler_unloaded()
stand_in = sys.modules[COMPILER]
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(2):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert not hasattr(stand_in, "__file__"), "who goes through all modules loads none"
assert [name for name in sys.modules if name.startswith(COMPILER)] == [COMPILER]

import torch._dynamo.config  # who wants a module of it gets all of it

assert sys.modules[COMPILER] is torch._dynamo is not stand_in
assert stand_in.reset is torch._dynamo.reset
compiled = torch.compile(lambda x: x * 2, backend="eager")
assert compiled(torch.ones(1)).item() == 2
assert hasattr(stand_in.disable(lambda: 1), "_torchdynamo_disable"), "of the user's, not of torch"

optimizer.zero_grad()
marked = torch.optim.Optimizer.zero_grad.__wrapped__.__dynamo_disable
assert marked is not torch.optim.Optimizer.zero_grad.__wrapped__

leave_compiler_unloaded()
assert sys.modules[COMPILER] is torch._dynamo, "what is loaded stays"
"""


def test_optimizers_step_without_the_compiler_and_who_compiles_gets_it_whole() -> None:
    subprocess.run([sys.executable, "-c", TRAINED_THEN_COMPILED], check=True, timeout=100)
