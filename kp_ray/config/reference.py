"""Generate the page docs/configuration.md from the fields of the configuration and their docstrings.

`python -m kp_ray.config.reference > docs/configuration.md` writes the page.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from kp_ray.config.schema import Config

_INTRODUCTION = """\
# Configuration

Every setting, with its type and its default. A key that is not listed here is refused. Override settings on the command
line with `--set SECTION.NAME=VALUE`. Paths in a config are relative to the folder in which a command runs.

This page is generated: `python -m kp_ray.config.reference > docs/configuration.md`.
"""
_TYPE_NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_WIDTH = 120


def config_reference() -> str:
    """Return the page as Markdown."""
    sections = _sections(Config)
    texts = [_INTRODUCTION, *(_section_text(title, section) for title, section in sections.items())]
    return "\n".join(texts)


def _sections(config: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return title -> section: the top level, then every section, followed by the models that its fields contain."""
    sections: dict[str, type[BaseModel]] = {"Top level": config}
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[f"`{name}`"] = field.annotation
            for model in _models_in(field.annotation):
                sections[f"{model.__name__} in `{name}`"] = model
    return sections


def _models_in(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the models that the fields of a section contain, e.g. in a list."""
    queue: list[Any] = [field.annotation for field in section.model_fields.values()]
    while queue:
        annotation = queue.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        queue += getattr(annotation, "__args__", ())


def _section_text(title: str, section: type[BaseModel]) -> str:
    """Format a section: heading, class docstring, and one item per field that is not a section itself."""
    properties = section.model_json_schema()["properties"]
    docstrings = _field_docstrings(section)
    items = [
        _item(name, _type_text(properties[name]), _default_text(field), docstrings[name])
        for name, field in section.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    return f"## {title}\n\n{inspect.getdoc(section)}\n\n" + "".join(items)


def _item(name: str, type_text: str, default: str, docstring: str) -> str:
    """Format a field as an item of a Markdown list."""
    text = f"**`{name}`** ({type_text}; {default}): {' '.join(docstring.split())}"
    item = textwrap.fill(
        text, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return f"{item}\n"


def _field_docstrings(section: type[BaseModel]) -> dict[str, str]:
    """Return field -> docstring, which is the string below the field in the source; leave out fields without one."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(node, ast.ClassDef)
    docstrings = {}
    for field, next_node in zip(node.body, node.body[1:], strict=False):
        docstring = next_node.value if isinstance(next_node, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Constant):
            docstrings[ast.unparse(field.target)] = str(docstring.value)
    return docstrings


def _default_text(field: Any) -> str:
    if field.is_required():
        return "required"
    default = _to_plain_value(field.get_default(call_default_factory=True))
    text = yaml.safe_dump(default, default_flow_style=True, sort_keys=False, width=10_000)
    text = text.removesuffix("...\n").strip()  # PyYAML ends a scalar with the document's end marker
    return f"default `{text}`"


def _to_plain_value(value: Any) -> Any:
    """Convert a default to plain values for YAML."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    return [_to_plain_value(item) for item in value] if isinstance(value, tuple) else value


def _type_text(schema: Mapping[str, Any]) -> str:
    """Describe the type of a field from its JSON schema."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type_text(option) for option in schema[key])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_type_text(item) for item in schema['prefixItems'])}]"
        return f"list of {_type_text(schema.get('items', {}))}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping from text to {_type_text(values) if isinstance(values, dict) else 'any value'}"
    name = _TYPE_NAMES.get(str(schema.get("type")), "any value")
    bounds = [f"{sign} {schema[key]:,}" for key, sign in _BOUNDS.items() if key in schema]
    return f"{name} {' and '.join(bounds)}" if bounds else name


if __name__ == "__main__":
    print(config_reference(), end="")
