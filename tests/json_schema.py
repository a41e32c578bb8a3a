"""What a JSON Schema of ours says of a file, checked: the part of the standard that genlip.common.schema uses."""

from typing import Any

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list, "null": type(None)}


def complaints(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Where a value is not as the schema says; empty if it is."""
    allowed = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in allowed):
        return [f"{where} is {type(value).__name__}, not {' or '.join(allowed)}"]
    found = []
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{where} lacks {name}" for name in schema["required"] if name not in value]
        found += [f"{where} has {name}" for name in value if name not in schema["properties"] and not schema["additionalProperties"]]
        for name in value.keys() & schema["properties"].keys():
            found += complaints(value[name], schema["properties"][name], f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for number, each in enumerate(value):
            found += complaints(each, schema["items"], f"{where}[{number}]")
    return found
