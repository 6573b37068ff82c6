"""Collections: manifest, log, writer, snapshots and searches over segments."""
