"""`llmkit recipes …` and `validate`."""

from llmkit import pipeline, recipe
from llmkit.commands.result import Result


def validate(name: str) -> Result:
    """Keys, types, and that what the recipe names is there."""
    chosen = recipe.load(recipe.find(name))
    nodes = [node.name for node in pipeline.lay_out(chosen).nodes]
    return Result(f"{chosen.name}: valid; steps: {', '.join(nodes)}", {"recipe": chosen.name, "steps": nodes})


def list_recipes() -> Result:
    """The bundled recipes, each with the first line of its comment."""
    found = {name: path.read_text("utf-8").splitlines()[0].lstrip("# ") for name, path in recipe.bundled().items()}
    width = max(map(len, found))
    return Result("\n".join(f"{name:<{width}}  {line}" for name, line in found.items()), found)


def show_recipe(name: str) -> Result:
    """A recipe as it is written."""
    path = recipe.find(name)
    recipe.read(path)
    text = path.read_text("utf-8")
    return Result(text.rstrip("\n"), {"path": str(path), "text": text})
