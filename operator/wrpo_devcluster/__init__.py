"""Embedded control plane for development and tests: API server, controllers, scheduler and kubelet of one machine."""
