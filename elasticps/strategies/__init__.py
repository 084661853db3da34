"""The built-in communication strategies, loaded through the same entry points as anyone's.
Only ``elasticps.api`` and its errors are used here.
"""
