"""The two faces of embedserve: HTTP (`api.app`) and the command line (`api.cli.main`)."""
