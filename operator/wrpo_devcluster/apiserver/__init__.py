"""A Kubernetes-compatible API server in one asyncio process, persisted to SQLite."""
