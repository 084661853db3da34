"""The built-in gradient codecs, loaded through the same entry points as anyone's.
Only ``elasticps.api`` is used here, and its errors.
"""
