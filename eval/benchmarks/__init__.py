"""Published benchmarks: loaders for their files, and their scores as published."""
