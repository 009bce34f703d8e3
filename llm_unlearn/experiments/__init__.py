"""Comparisons and experiments: methods beside exact deletion and never-had, on the same documents.

Above everything but the command line: it makes workspaces of its own, in its output directory.
"""
