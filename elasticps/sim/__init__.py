"""A whole cluster in one thread and a made-up time: etcd, network, servers, workers and faults.

Everything is drawn from a seed, and the same seed gives the same run, event for event. It drives
``elasticps.core`` as the real processes do, and holds the promises against what happens. So it does
with checkpoints, whose code it is given, on a disk that loses power.
"""
