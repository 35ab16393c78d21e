"""Answers in, what people look at out: figures, tables and pictures."""
