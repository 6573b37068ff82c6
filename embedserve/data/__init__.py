"""Readers of records: JSON Lines, CSV, Parquet, text files, optionally compressed."""
