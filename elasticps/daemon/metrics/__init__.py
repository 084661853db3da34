"""What a daemon measures and counts for Prometheus, of itself, its children and what it leads.

Everything is told to it on the daemon's loop: plain numbers, no threads, no locks. ``catalogue``
names all metrics; nothing is exported that is not there.
"""
