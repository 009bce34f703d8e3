"""The HTTP server over one workspace (extra `serve`): an OpenAI-compatible chat, and operations.

app         everything put together; `run` starts it on a port
engine      the one model thread: continuous batching, and what a takedown does to it
asking      from a conversation to a choice of sources and a prompt
access      API keys: roles, groups, revocation
"""
