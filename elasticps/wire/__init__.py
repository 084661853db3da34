"""The data plane's bytes: frame layout, message structs, transports and their connections.

Nothing here knows what a block, an optimizer or a plan does; imports only ``core`` and ``errors``.
"""
