"""The contracts that plugins implement, each with its version, and how plugins are found.

Nothing here imports the rest of elasticps but its errors and the core's values; a plugin needs
nothing else.
"""
