"""The pages a browser sees; each is one file without external assets."""
