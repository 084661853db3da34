"""The optimizers as plugins, by the names of their entry points."""

from __future__ import annotations

import torch

from elasticps.api.optimizer import TorchOptimizer
from elasticps.optimizers.ftrl import Ftrl
from elasticps.optimizers.lamb import Lamb
from elasticps.optimizers.lars import Lars

adadelta = TorchOptimizer(torch.optim.Adadelta)
adagrad = TorchOptimizer(torch.optim.Adagrad)
adam = TorchOptimizer(torch.optim.Adam)
adamax = TorchOptimizer(torch.optim.Adamax)
adamw = TorchOptimizer(torch.optim.AdamW)
asgd = TorchOptimizer(torch.optim.ASGD)
ftrl = TorchOptimizer(Ftrl)
nadam = TorchOptimizer(torch.optim.NAdam)
radam = TorchOptimizer(torch.optim.RAdam)
rmsprop = TorchOptimizer(torch.optim.RMSprop)
rprop = TorchOptimizer(torch.optim.Rprop)
sgd = TorchOptimizer(torch.optim.SGD)

adafactor = TorchOptimizer(torch.optim.Adafactor, elementwise=False)
"""Factors second moments by rows and columns, so it needs whole parameters."""
lamb = TorchOptimizer(Lamb, elementwise=False)
lars = TorchOptimizer(Lars, elementwise=False)
"""These two take norms of whole parameters."""
