"""Kubelet of the embedded control plane: pods as processes of this machine, or simulated ones."""
