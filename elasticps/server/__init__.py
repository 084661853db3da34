"""The shard server's process: hosted blocks and ledgers, sessions with clients, replica streams.

The pure core decides; this package holds the tensors and the sockets. It never talks to etcd: its
daemon tells it the plan and how long the node's lease allows it to serve.
"""
