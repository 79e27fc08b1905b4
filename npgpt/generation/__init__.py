"""Generation: from the next token's logits to text. Knows no model."""
