"""Values in the forms that Kubernetes reads: string formats, regular expressions and URLs of Go."""
