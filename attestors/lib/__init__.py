"""Parts that several attestors share: cgroup paths, HTTP, engines, the kubelet."""
