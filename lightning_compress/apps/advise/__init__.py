"""Which bit width and sparsity for each layer: measured sensitivity, then a choice under a budget."""
