"""HTTP/2 and gRPC on accepted connections.

`connection` owns a socket, reads it in its turn, and watches its process's pidfd; `poller` is the
one epoll of all connections. `half` is the Protocol of an HTTP/2 half, and `http2_server` the half
that serves: it packs frames (`frames`), decodes header blocks (`header_blocks`, `huffman`), applies
the rules for requests (`request_rules`), and bounds what a client may send (`bounds`). `calls`
begins the gRPC calls of a connection, `served_call` is one of them, and `grpc_protocol` has the
rules of gRPC. `challenge` sends a PING that the caller must answer. `service` says what a method
is: this room knows none. `half`, `http2_server`, its parts and `grpc_protocol` do no I/O. Only
`gate` and the methods of `api` enter here.
"""
