"""Keys, certificates and tokens: who may speak to a cluster, and how that is proven.

All that touches a secret lives here, in files short enough to be read by who must trust them.
Nothing here opens a connection or knows what a block is; imports only ``core`` and ``errors``.
"""
