"""A whole cluster: a real etcd, real daemons, shard servers and workers, on loopback."""
