"""The worker's side: the run that a script joins, its optimizer, its data, its data-plane client.

The script's thread computes; a background thread runs one uvloop that talks to servers and daemon.
"""
