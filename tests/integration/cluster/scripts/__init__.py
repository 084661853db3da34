"""What the clusters of the tests train."""
