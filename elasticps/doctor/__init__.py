"""What is wrong with a machine or a cluster, and what to do about it: one small check a subject.

A machine's checks (``machine.py``) read its daemon's configuration and need no daemon; a cluster's
(``cluster.py``) are pure, over what the HTTP API has said. Nothing here repairs anything.
"""
