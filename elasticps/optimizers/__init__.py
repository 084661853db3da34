"""The built-in optimizers: classes of ``torch.optim``, loaded through the same entry points as
anyone's. Only ``elasticps.api`` is used here.
"""
