"""Value formats of Kubernetes: string formats, and Go's regular expressions and URLs."""
