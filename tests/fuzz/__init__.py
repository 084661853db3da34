"""Coverage-guided fuzzing of what reads bytes from elsewhere: the wire, and checkpoints.

``target_wire`` and ``target_checkpoint`` say what may come of any bytes at all. ``corpus`` has the
inputs that a search begins with, made by ``seeds`` from real frames and files, and all that a
search has ever found (``find-*``). ``python -m tests.fuzz`` searches; ``make fuzz SECONDS=300``.
"""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
