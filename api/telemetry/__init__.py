"""Logs, metrics, traces, and the record of the request in progress."""
