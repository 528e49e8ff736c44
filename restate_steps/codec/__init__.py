"""Encode values for the journal, and decode them.

:class:`Codec` is the protocol that the rest of the package depends on, and :data:`DEFAULT_CODEC` the codec that it uses
by default. The encoded form is JSON, so Restate's UI can show it and services in other languages can read it:

* A declared type decides both directions: ``dump(list[Order], orders)`` and ``load(list[Order], data)``.
* Without a declared type (:data:`PLAIN_JSON`), values are dicts, lists, strings, numbers, booleans and ``None``.
* ``None`` is ``null``. Bytes are base64. NaN and the infinities are written as ``NaN`` and ``Infinity``, which Python
  and most databases read, and strict JSON parsers do not.
* Fields are written under their aliases, as other services see them, and read back from them.

A value that would be changed by encoding raises an error: pydantic's serialization warnings are errors here, and
:func:`verify` decodes the encoded value and compares.
"""

from restate_steps._public import publish
from restate_steps.codec._adapters import PLAIN_JSON, is_plain
from restate_steps.codec._json import DEFAULT_CODEC, Codec, JsonCodec, verify
from restate_steps.codec._names import type_name

__all__ = ["DEFAULT_CODEC", "PLAIN_JSON", "Codec", "JsonCodec", "is_plain", "type_name", "verify"]

publish("restate_steps", globals(), __all__)
