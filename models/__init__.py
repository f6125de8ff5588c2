"""Model weights: what exists (catalogue), getting it (fetch), showing it (table).

A leaf package: nothing here imports ``host`` or ``inference``, and nothing reads the environment.
"""
