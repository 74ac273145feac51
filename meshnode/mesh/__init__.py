"""SHELL: links between nodes. `link` is the transport, `session` one live link, `mesh` the pump that drives the gossip engine."""
