"""Recorded journals of every feature, which every later version has to be able to replay."""
