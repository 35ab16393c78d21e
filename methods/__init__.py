"""How a classifier is learned from features: text, shots and validation rows in, an Adapter out. numpy and scipy;
Jittor where gradients are wanted.

Letters: C classes, N shots, V views of each, D feature width, M rows. Features are float32 rows of unit L2 norm.
"""
