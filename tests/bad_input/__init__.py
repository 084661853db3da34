"""What this software may be given and must not take, a table for each surface.

Each row does the bad thing for real, and says what must come of it: an error of its type that names
field and limit, no traceback for the user, nothing changed, and a count or a line in the log where
there is one. HTTP's is in tests/integration/cluster/test_bad_http.py. `make audit` counts them all.
"""
