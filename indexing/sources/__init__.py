"""Where documents come from: corpora on disk, passages, the docs of installed Python packages."""
