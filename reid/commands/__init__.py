"""The commands behind ``reid``, grouped by what they work on.

Each imports its package when it runs, so the edge commands work without torch.
"""
