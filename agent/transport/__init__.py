"""The bytes of one connection.

`connection` owns a socket and relays it to the gRPC server, `http2` cuts the bytes into frames,
`challenge` asks the client for a PING. This room knows no gRPC methods.
"""
