"""What heads do: causal scores for words, direct logit attribution, the language-bias probe."""
