"""Tests; the tree mirrors `broker/`."""
