"""Element-wise ``torch.optim`` classes as plugins, by the names of their entry points."""

from __future__ import annotations

import torch

from elasticps.api.optimizer import TorchOptimizer

sgd = TorchOptimizer(torch.optim.SGD)
adagrad = TorchOptimizer(torch.optim.Adagrad)
rmsprop = TorchOptimizer(torch.optim.RMSprop)
adam = TorchOptimizer(torch.optim.Adam)
adamw = TorchOptimizer(torch.optim.AdamW)
adafactor = TorchOptimizer(torch.optim.Adafactor, elementwise=False)
"""Factors second moments by rows and columns, so it needs whole parameters."""
