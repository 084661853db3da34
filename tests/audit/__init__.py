"""`make audit`: what tools and tests say of this tree's safety, as one JSON object.

``tools`` runs each and counts what it has found, by its own output; ``verdict`` holds the counts
against what they may be. Where a tool cannot be run, or says what it never says, its count is null,
which is as bad as one that is too high.
"""
