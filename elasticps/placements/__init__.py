"""The built-in placements, loaded through entry points like anyone's, and the process they run in.

The decisions are in the core; nothing here imports torch.
"""
