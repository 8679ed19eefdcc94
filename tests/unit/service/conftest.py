from tests.support.notify_socket import notify_socket

__all__ = ["notify_socket"]
