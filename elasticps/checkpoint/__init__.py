"""Checkpoints on a file system: their manifest, how they are written whole, and read back.

One directory each, named by its round. Nothing here knows of servers, workers or the wire.
"""
