"""The commands. Those about a running node are clients of its HTTP API; those about the data directory work on it."""
