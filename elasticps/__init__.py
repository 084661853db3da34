"""elasticps: an elastic parameter server for PyTorch."""
