"""The checks, one subject a file. A new one is a function here and a row in ``machine.py`` or
``cluster.py``."""
