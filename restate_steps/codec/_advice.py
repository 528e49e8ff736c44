"""Explain why a value cannot be recorded, and how to fix it."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError
from pydantic.errors import PydanticUndefinedAnnotation

from restate_steps.codec._compare import Difference
from restate_steps.codec._paths import format_path
from restate_steps.errors import DecodeError

__all__ = [
    "explain_load",
    "first_line",
    "fix_for_difference",
    "fix_for_load",
    "fix_for_type",
    "fix_for_value",
    "path_of",
    "tidy",
]

_USE_FITTING_TYPE: Final = (
    "Return a value of the declared type, or declare the type that is returned, in the annotation or with returns=."
)
_OWN_CODEC: Final = "or pass a codec of your own, an object with dump and load, as codec="
_VALUE_FIXES: Final[tuple[tuple[str, str], ...]] = (
    (
        "surrogates not allowed",
        "The text is not valid Unicode: decode it with errors='replace', or keep it as bytes.",
    ),
    (
        "invalid utf-8",
        "Set ser_json_bytes='base64' and val_json_bytes='base64' in the configuration of the class, or declare the "
        "type of the value, so that its bytes are written as base64.",
    ),
    (
        "Circular reference",
        "JSON cannot hold a reference cycle: replace the reference that closes it with an identifier.",
    ),
    (
        "Unable to serialize unknown type",
        "Return data (a model, a dataclass, a dict) instead of the object, declare a type that says how to encode it "
        f"(Annotated with PlainSerializer and BeforeValidator), {_OWN_CODEC}.",
    ),
    ("Expected `", _USE_FITTING_TYPE),
)


def fix_for_value(reason: str) -> str:
    for sign, fix in _VALUE_FIXES:
        if sign in reason:
            return fix
    return f"Return a value that can be written as JSON, {_OWN_CODEC}."


def fix_for_type(error: Exception) -> str:
    if isinstance(error, PydanticUndefinedAnnotation | NameError):
        return "Define the name in the module of the class that uses it before the first use, or call model_rebuild()."
    return (
        "Declare a type pydantic can handle (models, dataclasses, TypedDict, builtin and standard types), declare "
        f"another with returns=, {_OWN_CODEC}."
    )


def fix_for_load(error: DecodeError) -> str:
    cause = error.__cause__
    details = cause.errors(include_url=False, include_input=False) if isinstance(cause, ValidationError) else []
    if any("[key]" in item["loc"] for item in details):
        return "The keys of a JSON object are text: return a list of pairs, list[tuple[K, V]], instead of the dict."
    error_types = {item["type"] for item in details}
    if "finite_number" in error_types:
        return "Allow it in the type: Annotated[Decimal, Field(allow_inf_nan=True)]."
    if "missing" in error_types:
        return (
            "A field is left out of the encoded form (by Field(exclude=True) or a custom serializer): give it a "
            "default, or include it."
        )
    if "extra_forbidden" in error_types:
        return "A serializer adds a field that the type forbids: leave it out of the encoded form, or allow it."
    return (
        "Make the type accept its own encoded form (its serializers and validators must be each other's inverse), or "
        "return a value that passes the type's validation."
    )


def fix_for_difference(difference: Difference) -> str:
    leave = "or switch the check off with verify=False if the difference does not matter"
    match difference.kind:
        case "subclass":
            return (
                "Declare the subclass, or a union of the classes that can be returned (best a discriminated one), in "
                f"the return annotation or with returns=, {leave}."
            )
        case "type":
            return (
                "Convert the value to the declared type, declare the type that is returned (in the annotation or with "
                "returns=), give a union whose members look alike in JSON a discriminator, "
                f"{leave}."
            )
        case "iterator":
            return "Return a list, tuple or set, and declare it."
        case "excluded":
            return f"Remove exclude=True from the field, set it outside the step, {leave}."
        case "missing":
            return (
                "Declare what is returned in full (a field for it, or extra='allow' in the configuration of the "
                f"class), or leave it out, {leave}."
            )
        case "opaque":
            return f"Define __eq__ on the class, {leave}."
        case "depth":
            return f"Return a flatter value, {leave}."
        case "value":
            if "**********" in difference.reason:
                return (
                    "A secret is masked when it is encoded. Fetch it where it is used instead of recording it, or "
                    "return it as str."
                )
            return (
                "Make the type's serializers and validators each other's inverse, return the value as validation "
                f"changes it, {leave}."
            )


def tidy(message: str) -> str:
    """Return pydantic's message on one line, without what surrounds it."""
    for prefix in ("Error serializing to JSON: ", "Pydantic serializer warnings:"):
        message = message.removeprefix(prefix)
    lines = [line.strip().rstrip(".") for line in message.strip().splitlines()]
    return "; ".join(
        line.removeprefix("PydanticSerializationUnexpectedValue(").removesuffix(")")
        if line.startswith("PydanticSerializationUnexpectedValue(")
        else line
        for line in lines
        if line
    )


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def explain_load(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {first_line(error)}"
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    parts = [f"at {_location(item['loc'])}: {item['msg']}" for item in errors[:3]]
    if len(errors) > 3:
        parts.append(f"and {len(errors) - 3} more")
    return "; ".join(parts)


def path_of(error: BaseException | None) -> str:
    if isinstance(error, ValidationError):
        return _location(error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"])
    return "$"


def _location(loc: tuple[int | str, ...]) -> str:
    # Pydantic marks an error in a key with this last item.
    return format_path(item for item in loc if item != "[key]")
