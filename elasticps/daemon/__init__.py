"""The node's daemon: registration, leadership, planning, children, HTTP API. The control plane.

It runs on one loop, never computes on tensors and never imports user code or plugins, so that
nothing can starve its lease.
"""
