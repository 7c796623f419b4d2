"""Shipped configurations, found by :mod:`reid.config`."""
