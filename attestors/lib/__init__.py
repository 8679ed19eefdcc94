"""Shared parts of the built-in attestors: cgroup paths, HTTP, container engines, the kubelet."""
