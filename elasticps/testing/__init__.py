"""What tests and demonstrations of elasticps itself, and of plugins, start from."""

from elasticps.daemon.local_cluster import LocalCluster as LocalCluster
