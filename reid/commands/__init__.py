"""The commands behind ``reid``, by what they work on. Each loads its room when it runs, so the edge commands work
without torch.
"""
