"""The built-in optimizers, loaded through the same entry points as anyone's: the classes of
``torch.optim``, and those that torch lacks. Only ``elasticps.api`` is used here.
"""
