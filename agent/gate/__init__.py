"""Accepts connections, identifies callers, and applies quotas before the first byte is read.

`acceptor` accepts, `admission` asks the kernel for the caller and counts it, `gate` owns the open
connections, `disconnects` logs why they ended. Only `agent.api`, `agent.admin` and `agent.service`
import this room.
"""
