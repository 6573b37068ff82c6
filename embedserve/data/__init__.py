"""Readers of records: JSON Lines, CSV, Parquet, text files, compressed or not."""
