"""Logs without repetition: drop the records of code that only replays."""

from __future__ import annotations

import logging

from restate_steps._public import publish
from restate_steps.context import is_replaying

__all__ = ["ReplayFilter", "get_logger"]


class ReplayFilter(logging.Filter):
    """A filter that drops records logged by a handler while it replays its journal.

    Without it, a line that a handler logs appears again in each attempt that replays that part of the handler. Records
    of steps' bodies, of new code, and of code outside handlers pass. Add it to a logger or, to cover all loggers of a
    process, to a handler of the root logger. ``restate-steps dev`` adds it to all handlers.

    No record is lost, so some are repeated: those that a handler logs after the last entry that it has made in the
    journal, because the attempt before may have crashed there. An entry is made by a step, a durable sleep or a call,
    for example, but not by the wait for an awakeable.

    Example:
        ```python
        import logging

        import restate_steps

        logging.basicConfig(level=logging.INFO)
        for handler in logging.getLogger().handlers:
            handler.addFilter(restate_steps.ReplayFilter())
        ```
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        return super().filter(record) and not is_replaying()


def get_logger(name: str | None = None) -> logging.Logger:
    """Return a logger that does not repeat what a handler logged before.

    It is the logger that :func:`logging.getLogger` returns, with a :class:`ReplayFilter`. Use it in place of
    ``restate.getLogger``, whose filter loses records of a task that has waited for other tasks.

    Args:
        name: The logger's name; the root logger by default.

    Returns:
        The logger.

    Example:
        >>> get_logger("shop").name
        'shop'
    """
    logger = logging.getLogger(name)
    if not any(isinstance(each, ReplayFilter) for each in logger.filters):
        logger.addFilter(ReplayFilter())
    return logger


publish("restate_steps", globals(), __all__)
