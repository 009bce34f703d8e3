"""Base models, adapters and embedders: load, digest, generate, score.

Knows nothing of workspaces or takedowns. Import the modules by name; nothing heavy is imported here.
"""
