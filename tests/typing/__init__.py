"""Code that the type checkers must accept (``api_*.py``) or reject (``reject_*.py``). It is never run."""
