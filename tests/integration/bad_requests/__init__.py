"""What a shard server is sent that it must not take, and what must come of it."""
