"""The ``elasticps`` command. It speaks to the HTTP API of a daemon alone.

Modules load click at most; what is slow to import (aiohttp, the daemon) waits for its command.
"""
