"""Load tests: the locustfile, the plans it plays and the traces that the plans draw from."""
