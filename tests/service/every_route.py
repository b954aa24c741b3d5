"""Prints the routes of the app of a team's server as JSON: every path, method and parameter that MLflow lists.

Runs in a process of its own, with the server's environment: making the app changes MLflow's modules.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any


def fields_of(descriptor: Any, depth: int = 0) -> dict[str, Any]:
    """The fields of a request as {name: type}; a list of one for those that repeat; a dict for a message."""
    fields: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.message_type is None:
            kind: Any = (
                "bool"
                if field.type == field.TYPE_BOOL
                else "str"
                if field.type == field.TYPE_STRING
                else "number"
            )
            if field.enum_type is not None:
                kind = field.enum_type.values[0].name
        elif depth < 3:
            kind = fields_of(field.message_type, depth + 1)
        else:
            continue
        fields[field.name] = [kind] if field.is_repeated else kind
    return fields


def flask_routes() -> Iterator[dict[str, Any]]:
    from mlflow.server import app
    from mlflow.server.handlers import get_endpoints

    requests = {
        (path, method): request.DESCRIPTOR
        for path, request, methods in get_endpoints(lambda request: request)
        for method in methods
        if hasattr(request, "DESCRIPTOR")
    }
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<path:", "<")
        for method in rule.methods:
            request = requests.get((rule.rule, method))
            yield {"path": path, "method": method, "fields": fields_of(request) if request else None}


def native_routes(app: Any) -> Iterator[dict[str, Any]]:
    for included in app.routes:
        prefix = getattr(getattr(included, "include_context", None), "prefix", "")
        for route in getattr(getattr(included, "original_router", None), "routes", []):
            path = (prefix + route.path).replace("{", "<").replace(":path}", ">").replace("}", ">")
            for method in route.methods:
                yield {"path": path, "method": method, "fields": None}


def main() -> None:
    module, name = sys.argv[1].split(":")
    app = getattr(importlib.import_module(module), name)()
    native = list(native_routes(app))
    assert len(native) > 50, "FastAPI keeps its routes elsewhere now"
    json.dump([*flask_routes(), *native], sys.stdout)


if __name__ == "__main__":
    main()
