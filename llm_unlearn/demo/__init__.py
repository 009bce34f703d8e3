"""The main job on packaged models, from a corpus written for it."""
