"""Load tests of the service, beside other servers."""
