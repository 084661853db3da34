"""The pure core: decisions as plain code that takes events and returns actions.

No await, no clock, no sockets, no randomness, no torch. Production and the simulator run the same
objects; whatever needs the outside world happens in the shells around this package.
"""
