"""One demand, from request to receipt: plan, fence, delete, retrain, prove.

Imports nothing here, so that the verifier loads without training or retrieval.
"""
