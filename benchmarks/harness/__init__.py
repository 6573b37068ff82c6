"""The MTEB harness: any encoder and any index, evaluated by mteb's own tasks, with results that can be trusted.

systems -> tasks -> run (one record for each) -> report and submission; ``embedserve bench`` is its command line.
"""
