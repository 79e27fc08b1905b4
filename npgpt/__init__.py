"""npgpt: a GPT that can be read down to the last derivative and really trained."""
