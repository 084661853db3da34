"""The daemon's HTTP API: what any daemon knows of the cluster, and what it can be asked to do."""
