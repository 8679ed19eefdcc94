"""The bytes of one connection.

`connection` owns an accepted socket, watches its process's pidfd, and relays it to the gRPC server.
`relay` copies bytes between two sockets. `http2` cuts the bytes into frames. `challenge` sends a
PING that the caller must answer. This room knows no gRPC methods.
"""
