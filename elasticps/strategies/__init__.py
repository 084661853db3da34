"""The built-in communication strategies, loaded through the same entry points as anyone's.
Only ``elasticps.api`` is used here.
"""
