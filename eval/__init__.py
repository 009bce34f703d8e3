"""Leakage probes: what can still be pulled out of a model, an answerer or a directory of files.

Guarantees: a probe takes models, answers or files as arguments and returns values for each example;
it opens no workspace and changes no model (what it must change it puts back). Verdicts need the same
value of a model that never had the text: no probe calls a text forgotten by itself.
"""
