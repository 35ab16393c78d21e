"""Data sets, prompts, shots, feature files and the encoder of few-shot tasks."""
