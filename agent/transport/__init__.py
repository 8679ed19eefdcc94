"""HTTP/2 and gRPC on accepted connections.

`connection` owns a socket, reads it in its turn, and watches its process's pidfd. `http2_server` is
the server's half of HTTP/2 and `grpc_protocol` the rules of gRPC, both without I/O; `calls` begins
the calls of a connection. `challenge` sends a PING that the caller must answer. `service` says what
a method is: this room knows none. Only `gate` and the methods of `api` enter here.
"""
