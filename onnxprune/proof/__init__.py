"""Law 1: the pruned model equals the masked original."""
