"""Tests of the package `indexing`."""
