"""The built-in data policies, loaded through entry points like anyone's.

Thin faces over ``core.lending``, so that the simulator runs the same code.
"""
