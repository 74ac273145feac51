"""The links of a node, from the socket up; each module knows only those after it.

mesh      the shell around the gossip engine: accepts, dials, performs effects
peer      a peer as a backend
session   one live link: reader, writer, streams
streams   the inference streams of a link; asked and served are the two ends of one; lanes and credit are what they wait for
handshake from a TCP stream to a proven peer; link is the WebSocket under it
listen    the sockets of the mesh port; gate and refusals are about who may not come in, reasons says why in words
"""
