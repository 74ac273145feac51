"""meshnode: machines on one LAN share the language models that each has loaded.

The layers, top to bottom; imports run downwards only (checked by `tests/test_contracts.py`):

    cli -> node -> api, bridges, worker supervisor, mesh -> dispatch -> backend, routing, gossip -> wire -> inference -> errors

`wire`, `gossip`, `routing`, `status` and the API mappings are pure: no trio, socket, time or logging.
"""

__version__ = "0.1.0"
