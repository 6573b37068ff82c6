"""What routes do, independent of HTTP: search, write documents, manage collections, start jobs."""
