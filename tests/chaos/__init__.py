"""Chaos: a real cluster that trains while it is killed, frozen, cut off and starved, and proof.

``python -m tests.chaos --minutes 30 --seed 1``; the last line is one JSON object.
"""
