"""Others that move tensors between processes, each tuned as its own documentation says.

All of them push and pull in one exchange, have SGD applied by one kernel on the other side, and
copy what comes back to where it is wanted only where they cannot receive it there.
"""

from __future__ import annotations

PEERS = {
    "torch rpc": "benchmarks.peers.torch_rpc",
    "ray": "benchmarks.peers.ray_actor",
    "grpc.aio": "benchmarks.peers.grpc_aio",
    "pyzmq": "benchmarks.peers.zmq_pair",
    "gloo": "benchmarks.peers.gloo_sum",
}
SPINS = frozenset({"torch rpc"})
"""TensorPipe's shared memory is polled without a pause."""
LOCAL_ONLY = frozenset({"ray"})
"""Ray's object store is one a machine: there is no TCP between two processes of it."""
