"""What methods are made of: head scaling, the KV cache, contrasts, continuations."""
