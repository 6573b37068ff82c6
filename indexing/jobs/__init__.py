"""The offline job: a source split into shards, encoded, and assembled into a collection."""
