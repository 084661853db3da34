"""The contracts that plugins implement, each with its version, and how plugins are found.

Nothing here imports the rest of elasticps but its errors; a plugin needs nothing else.
"""
