"""The edge: the only code that sees gRPC and protobuf."""
