"""From token ids to a vector, without a tokenizer."""
