"""Approximate forgetting: methods that change trained weights so that they give a text back less.

Nothing here proves that anything is gone. A result is a file beside the model, never a part of a
workspace's answering state; exact deletion is `sisa` and `takedown`.
"""
