"""CEL as Kubernetes has it: syntax, types, functions, evaluation and cost."""
