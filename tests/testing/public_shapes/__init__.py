"""Public programs of Restate, each rewritten from scratch as a shape of a few lines.

The programs are those of the repositories sdk-python, examples and ai-examples of restatedev. The table in
``docs/testing.md`` lists what the kit finds in them, and ``test_public_shapes.py`` compares.
"""
