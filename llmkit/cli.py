"""The commands and the one error boundary. Imports stdlib and typer alone: `--help` must not wait for anything else.

stdout carries results, stderr carries talk. Exit codes: 0 done; 1 a gate failed; 2 usage, recipe or data error; 3 the
environment or a proof failed; 130 interrupted.
"""

import atexit
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llmkit import errors, progress, telling

if TYPE_CHECKING:
    from llmkit.commands.result import Result

_INTERRUPTED = 130  # 128 + SIGINT, as shells count

app = typer.Typer(
    help="Dialogues in; a tested, quantized chat model out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The recipes that ship with llmkit.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")


def _offers(what: str) -> "Callable[[str], list[str]]":
    """What a shell offers on TAB: a function of `llmkit.commands.completing`, imported only then."""

    def offer(incomplete: str) -> list[str]:
        found: list[str] = getattr(importlib.import_module("llmkit.commands.completing"), what)(incomplete)
        return found

    return offer


RecipeName = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe file, or a bundled recipe's name.", autocompletion=_offers("recipes")),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="A recipe file or a bundled recipe's name. Default: ./llmkit.yaml, else the last one run here.",
        autocompletion=_offers("recipes"),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.", autocompletion=_offers("assignments")
    ),
]
Workspace = Annotated[Path, typer.Option("--workspace", help="The folder that holds the runs.")]
Force = Annotated[bool, typer.Option("--force", help="Run even what is fresh; replace an --output that llmkit wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings and errors only.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the Python files that the recipe names (clean.custom, eval.tasks).")
]
AllowCodeExec = Annotated[
    bool, typer.Option("--allow-code-exec", help="Run the programs that a model writes, in a sandbox (eval.code).")
]
MaxDrop = Annotated[
    list[str] | None, typer.Option("--max-drop", metavar="METRIC=POINTS", help="Such as rougeL=1.0; repeatable.")
]
Output = Annotated[Path | None, typer.Option("--output", help="With --input: the folder to write.")]
Model = Annotated[str | None, typer.Option("--model", help="The base: a hub id, modelscope:ID, ./path or demo:smollm2-135m.")]
Base = Annotated[str | None, typer.Option("--base", help="Of an adapter: its base, where its manifest does not find it.")]
Context = Annotated[int | None, typer.Option("--context", min=1, help="Tokens that prompt and answer share.")]
Folder = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="An artifact, a run, the folder of runs, or a .gguf file.", autocompletion=_offers("artifacts")
    ),
]

RUNS = Path("runs")


@app.command()
def run(
    recipe: RecipeName,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    force: Force = False,
    allow_code: AllowCode = False,
    allow_code_exec: AllowCodeExec = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe's whole chain; what is fresh is skipped."""
    _do(
        "running",
        lambda c: c.run(recipe, set_ or [], workspace, force=force, allow=c.Allowed(allow_code, allow_code_exec)),
        json_=json_,
        quiet=quiet,
    )


@app.command()
def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="As for run; default as for the steps.", autocompletion=_offers("recipes")),
    ] = None,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="In place of a recipe: which precision of this model fits which device; a config.json will do."
        ),
    ] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="With --model: tokens. Default: 4096.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what would run and why, and the memory, disk and time it needs; nothing is run, and no weight is fetched."""
    if model is not None:
        if recipe or set_:
            _usage("--model takes the place of a recipe and its --set", json_=json_)
        _do("planning", lambda c: c.fits(model, context=context or 4096), json_=json_, quiet=quiet)
        return
    if context is not None:
        _usage("--context goes with --model", json_=json_)
    _do("planning", lambda c: c.plan(recipe, set_ or [], workspace), json_=json_, quiet=quiet)


@app.command()
def clean(
    recipe: RecipeOption = None,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    input_: Annotated[str | None, typer.Option("--input", help="Clean this file, folder, glob or hub:ID alone.")] = None,
    output: Output = None,
    min_turns: Annotated[int | None, typer.Option("--min-turns", help="Fewest messages in a dialogue.")] = None,
    max_chars: Annotated[int | None, typer.Option("--max-chars", help="Most characters in a message.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="With --input: its format. Default: detected.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="Write messages, sharegpt or alpaca too, for other trainers.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; changes no byte of the result.")] = None,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="ID", help="Tell the story of one record: an id, or FILE:LINE. Cleans nothing."),
    ] = None,
    force: Force = False,
    allow_code: AllowCode = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Filter, deduplicate and split raw dialogues."""
    if explain is not None:
        _do(
            "running",
            lambda c: c.explain_record(explain, recipe, set_ or [], workspace, output, input_),
            json_=json_,
            quiet=quiet,
        )
        return
    if format_ and not input_:
        _usage("--format goes with --input; a recipe's sources have a `format` of their own", json_=json_)
    rules = {"min_turns": min_turns, "max_chars": max_chars, "to": to, "workers": workers}
    flags = _flags({f"clean.{key}": value for key, value in rules.items()})
    alone = {"given": input_, "output": output, "format": format_}
    _step(
        "clean",
        recipe,
        set_,
        flags,
        workspace,
        alone=alone,
        force=force,
        allow_code=allow_code,
        json_=json_,
        quiet=quiet,
    )


@app.command()
def finetune(
    recipe: RecipeOption = None,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    input_: Annotated[str | None, typer.Option("--input", help="Train on this dataset folder alone.")] = None,
    output: Output = None,
    model: Model = None,
    objective: Annotated[str | None, typer.Option("--objective", help="sft, orpo, dpo or kto.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, qlora or full.")] = None,
    init_adapter: Annotated[str | None, typer.Option("--init-adapter", help="Start from this adapter folder.")] = None,
    force: Force = False,
    allow_code: AllowCode = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an adapter, or the whole model."""
    chosen = {"objective": objective, "method": method, "init_adapter": init_adapter}
    flags = _flags({**{f"finetune.{key}": value for key, value in chosen.items()}, "model": model})
    alone = {"given": input_, "output": output, "model": model}
    _step("finetune", recipe, set_, flags, workspace, alone=alone, force=force, allow_code=allow_code, json_=json_, quiet=quiet)


@app.command()
def merge(
    recipe: RecipeOption = None,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    input_: Annotated[str | None, typer.Option("--input", help="Merge this adapter folder alone.")] = None,
    output: Output = None,
    model: Model = None,
    force: Force = False,
    allow_code: AllowCode = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge the adapter into its base."""
    flags = _flags({"model": model})
    alone = {"given": input_, "output": output, "model": model}
    _step("merge", recipe, set_, flags, workspace, alone=alone, force=force, allow_code=allow_code, json_=json_, quiet=quiet)


@app.command()
def quantize(
    recipe: RecipeOption = None,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    input_: Annotated[str | None, typer.Option("--input", help="Quantize this model folder alone.")] = None,
    output: Output = None,
    bits: Annotated[int | None, typer.Option("--bits", help="8 (LLM.int8) or 4 (NF4). Default: what the recipe lists.")] = None,
    force: Force = False,
    allow_code: AllowCode = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write bitsandbytes INT8 and 4-bit checkpoints."""
    if bits is not None and any(one.startswith("quantize=") for one in set_ or ()):
        _usage("--bits and --set quantize=… both say what to make: give one of them", json_=json_)
    flags = [] if bits is None else [f"quantize=[{{bits: {bits}}}]"]
    alone = {"given": input_, "output": output}
    _step("quantize", recipe, set_, flags, workspace, alone=alone, force=force, allow_code=allow_code, json_=json_, quiet=quiet)


@app.command()
def export(
    recipe: RecipeOption = None,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    input_: Annotated[str | None, typer.Option("--input", help="Export this model folder alone.")] = None,
    output: Output = None,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", help="Such as q8_0 or iq4_xs, repeatable; or auto: the smallest that keeps it."),
    ] = None,
    imatrix: Annotated[
        str | None, typer.Option("--imatrix", help="A text, or an importance matrix of llama.cpp; true: the training data.")
    ] = None,
    template: Annotated[str | None, typer.Option("--template", help="Of a model without one: chatml, gemma, …")] = None,
    pre: Annotated[str | None, typer.Option("--pre", help="llama.cpp's name of a pre-tokenizer llmkit does not know.")] = None,
    max_shard_size: Annotated[str | None, typer.Option("--max-shard-size", help="Split longer files, such as 4GB.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="With --input: the model before its fine-tune.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="With --input: a dataset folder, to measure on.")] = None,
    force: Force = False,
    allow_code: AllowCode = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write GGUF files that llama.cpp reads as the model speaks."""
    types: object = "auto" if type_ == ["auto"] else type_
    weigh: object = imatrix == "true" or imatrix
    chosen = {"types": types, "imatrix": weigh, "template": template, "pre": pre, "max_shard_size": max_shard_size}
    flags = [f"export.{key}={json.dumps(value)}" for key, value in chosen.items() if value]
    alone = {"given": input_, "output": output, "model": model, "data": data}
    _step("export", recipe, set_, flags, workspace, alone=alone, force=force, allow_code=allow_code, json_=json_, quiet=quiet)


@app.command("eval")
def evaluate(
    recipe: RecipeOption = None,
    set_: Overrides = None,
    workspace: Workspace = RUNS,
    input_: Annotated[
        str | None, typer.Option("--input", help="Measure this model folder, GGUF file or http://… alone; needs --data.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="With --input: a dataset folder with test.jsonl.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="With --input: the model it is to be compared with.")] = None,
    predictions: Annotated[Path | None, typer.Option("--predictions", help='Score these texts: lines {"id", "text"}.')] = None,
    references: Annotated[Path | None, typer.Option("--references", help="With --predictions: what they should be.")] = None,
    compat: Annotated[
        list[str] | None, typer.Option("--compat", help="llamafactory, rouge-chinese: their numbers too, labelled; repeatable.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Of --max-drop: a row, such as merged, or an earlier report's folder.")
    ] = None,
    max_drop: MaxDrop = None,
    review: Annotated[
        str | None, typer.Option("--review", metavar="A,B", help="Write review.html, a page for blind rating of two rows.")
    ] = None,
    ratings: Annotated[list[Path] | None, typer.Option("--ratings", help="What a rater exported; repeatable.")] = None,
    output: Output = None,
    force: Force = False,
    allow_code: AllowCode = False,
    allow_code_exec: AllowCodeExec = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure base, merged, quantized and GGUF, each in its own runtime; exit code 1 where one fails the gate."""
    compat = [name for one in compat or () for name in one.split(",")]
    if predictions or references:
        if not (predictions and references and output):
            _usage("--predictions, --references and --output go together", json_=json_)
        others: dict[str, object] = {"--recipe": recipe, "--set": set_, "--input": input_, "--data": data, "--model": model}
        others |= {"--baseline": baseline, "--max-drop": max_drop, "--review": review, "--ratings": ratings}
        if vain := next((name for name, value in others.items() if value), None):
            _usage(f"{vain} does not go with --predictions; `llmkit compare` judges its reports", json_=json_)
        _do("scoring", lambda c: c.score(predictions, references, output, compat=compat, force=force), json_=json_, quiet=quiet)
        return
    asked: dict[str, object] = {
        "compat": compat or None,
        "gate.baseline": baseline,
        "gate.max_drop": _points(max_drop, json_=json_) if max_drop else None,
        "review.models": review.split(",") if review else None,
        "review.ratings": [str(path) for path in ratings] if ratings else None,
    }
    flags = _flags({f"eval.{key}": value for key, value in asked.items()})
    _step(
        "eval",
        recipe,
        set_,
        flags,
        workspace,
        alone={"given": input_, "output": output, "data": data, "model": model},
        force=force,
        allow_code=allow_code,
        allow_code_exec=allow_code_exec,
        json_=json_,
        quiet=quiet,
    )


@app.command()
def compare(
    reports: Annotated[
        list[str], typer.Argument(metavar="A B [C…]", help="Reports' folders, A the baseline; FOLDER:ROW picks a row.")
    ],
    max_drop: MaxDrop = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the tables for a CI job's summary here.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the verdict as JUnit XML here.")] = None,
    json_: Json = False,
) -> None:
    """Compare reports sample by sample: differences with intervals, wins and losses, what changed most.

    Exit code 1 where a drop is larger than --max-drop allows and no accident, 2 where the reports cannot be compared or
    have too few samples to tell.
    """
    drops = _points(max_drop or [], json_=json_)
    _do("scoring", lambda c: c.compare(reports, drops, markdown=markdown, junit=junit), json_=json_, quiet=False)


@app.command()
def chat(
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="[ARTIFACT]",
            help="An adapter, model, quantized or GGUF; default: what the last run would ship.",
            autocompletion=_offers("artifacts"),
        ),
    ] = None,
    versus: Annotated[
        str | None, typer.Option("--versus", metavar="ARTIFACT", help="A second one, to be asked the same.")
    ] = None,
    base: Base = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Of an answer. Default: 512.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, help="0, the default, is greedy.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0, max=1, help="Share of likeliest tokens to draw from.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the draws; default: another each time.")] = None,
    context: Context = None,
    workspace: Workspace = RUNS,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout for each exchange.")] = False,
    quiet: Quiet = False,
) -> None:
    """Talk to an artifact, with its own template; /help tells the commands."""
    chosen = {"system": system, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    _do(
        "chatting",
        lambda c: c.chat(artifact, versus, workspace, base=base, context=context, json_=json_, quiet=quiet, **chosen),
        json_=json_,
        quiet=quiet,
    )


@app.command()
def serve(
    artifact: Annotated[
        str,
        typer.Argument(metavar="ARTIFACT", help="An adapter, model, quantized or GGUF.", autocompletion=_offers("artifacts")),
    ],
    base: Base = None,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; beyond this machine only with a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one and says which.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="LLMKIT_API_KEY", help="What clients must send as their key.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What the model is called; default: the artifact's name.")] = None,
    backend: Annotated[str, typer.Option("--backend", help="auto, transformers or vllm, for what is not GGUF.")] = "auto",
    context: Context = None,
    parallel: Annotated[int | None, typer.Option("--parallel", min=1, help="Answers made at once. Default: 8.")] = None,
    queue: Annotated[
        int | None, typer.Option("--queue", min=0, help="Requests that may wait; more get 429. Default: 256.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Most tokens of an answer. Default: 2048.")
    ] = None,
    sensitive: Annotated[
        list[Path] | None, typer.Option("--sensitive", metavar="FILE", help="Words to refuse in and keep out; repeatable.")
    ] = None,
    drain: Annotated[float, typer.Option("--drain-seconds", min=0, help="What SIGTERM leaves accepted requests.")] = 300,
    json_: Annotated[bool, typer.Option("--json", help="A JSON object a line on stdout: ready, then ended.")] = False,
    quiet: Quiet = False,
) -> None:
    """Serve an artifact as an OpenAI-compatible HTTP server with continuous batching."""
    chosen = {"host": host, "port": port, "api_key": api_key, "name": name, "backend": backend, "context": context}
    limits = {"parallel": parallel, "queue": queue, "max_tokens": max_tokens, "drain_seconds": drain}
    _do(
        "serving",
        lambda c: c.serve(artifact, base=base, sensitive=sensitive or [], json_=json_, **chosen, **limits),
        json_=json_,
        quiet=quiet,
    )


@app.command()
def push(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.", autocompletion=_offers("artifacts"))
    ],
    to: Annotated[str, typer.Argument(metavar="TO", help="OWNER/NAME on the Hugging Face hub, or modelscope:OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="A repository that others do not see.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it, only show what would be.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload an artifact with its model card; only what is as it was published."""
    _do("pushing", lambda c: c.push(artifact, to, private=private, yes=yes), json_=json_, quiet=quiet)


@app.command()
def doctor(workspace: Workspace = RUNS, json_: Json = False) -> None:
    """Check this machine: versions, extras, processor, GPU, disk, hubs; and say the command that mends what is wrong."""
    _do("doctoring", lambda c: c.examine(workspace), json_=json_, quiet=False)


@recipes_app.command("list")
def recipes_list(json_: Json = False) -> None:
    """Name the bundled recipes."""
    _do("recipes", lambda c: c.list_recipes(), json_=json_, quiet=False)


@recipes_app.command("show")
def recipes_show(recipe: RecipeName, json_: Json = False) -> None:
    """Print a recipe."""
    _do("recipes", lambda c: c.show_recipe(recipe), json_=json_, quiet=False)


@recipes_app.command("copy")
def recipes_copy(
    recipe: RecipeName,
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to.")] = Path("llmkit.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    json_: Json = False,
) -> None:
    """Copy a bundled recipe, to make it your own."""
    _do("recipes", lambda c: c.copy_recipe(recipe, file, force=force), json_=json_, quiet=False)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The recipe to write.")] = Path("llmkit.yaml"),
    from_: Annotated[str | None, typer.Option("--from", metavar="DATA", help="Your dialogues; asks no questions.")] = None,
    model: Model = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    json_: Json = False,
) -> None:
    """Write a commented recipe from a few answers, or from your data."""
    ask = _ask if sys.stdin.isatty() else None
    _do("starting", lambda c: c.init(file, from_, model, force=force, ask=ask), json_=json_, quiet=False)


@app.command()
def validate(recipe: RecipeName, json_: Json = False) -> None:
    """Check a recipe without running anything."""
    _do("recipes", lambda c: c.validate(recipe), json_=json_, quiet=False)


@app.command()
def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KEY|CODE",
            help="A recipe's key, such as finetune.lora.rank; or an error's code.",
            autocompletion=_offers("topics"),
        ),
    ],
    json_: Json = False,
) -> None:
    """Explain a recipe's key, or an error by its code."""
    _do("explaining", lambda c: c.explain(what), json_=json_, quiet=False)


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="An artifact or a model folder, or a .gguf file, whoever wrote it.",
            autocompletion=_offers("artifacts"),
        ),
    ],
    mask: Annotated[bool, typer.Option("--mask", help="Of a dataset: its first records as training reads them.")] = False,
    model: Model = None,
    template: Annotated[
        str | None, typer.Option("--template", help="With --mask: the chat template. Default: model, the base's own.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="With --mask: how many records. Default: 3.")] = None,
    json_: Json = False,
) -> None:
    """Show what an artifact is, made of what, and measured how; --mask: what training learns of a dataset.

    Of a GGUF file: its metadata, types and sizes, and what is wrong with it. Exit code 1 where an error is found.
    """
    if mask:
        color = sys.stdout.isatty() and not json_
        _do(
            "looking",
            lambda c: c.inspect_mask(path, model, template or "model", limit=limit or 3, color=color),
            json_=json_,
            quiet=False,
        )
        return
    if model or template or limit:
        _usage("--model, --template and --limit go with --mask", json_=json_)
    _do("looking", lambda c: c.inspect(path), json_=json_, quiet=False)


@app.command()
def verify(folder: Folder, json_: Json = False) -> None:
    """Hash the files of an artifact, of every artifact in a folder, or a GGUF file again; exit code 3 where one has changed."""
    _do("verifying", lambda c: c.verify(folder), json_=json_, quiet=False)


@app.command("clean-up")
def clean_up(
    workspace: Workspace = RUNS,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only show what could be.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what can be deleted of runs and caches, and how much it frees; --yes deletes it."""
    _do("clearing", lambda c: c.clean_up(workspace, yes=yes), json_=json_, quiet=quiet)


def main() -> None:
    """The console script. Under a launcher (torchrun, accelerate launch) the first process alone speaks."""
    if _launched() and os.environ["RANK"] != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    try:
        app(prog_name="llmkit")
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            _end_interrupted()
        raise


def _end_interrupted() -> NoReturn:
    """Exit 130 in any case. CPython kills itself by SIGINT at its end where Ctrl-C fell into code that it ran from a string,
    as each import of a dataclass does, however well it was handled since."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_INTERRUPTED)


def _step(
    verb: str,
    recipe: str | None,
    set_: list[str] | None,
    flags: list[str],
    workspace: Path,
    *,
    alone: "dict[str, Any]",
    force: bool,
    allow_code: bool,
    allow_code_exec: bool = False,
    json_: bool,
    quiet: bool,
) -> None:
    """A step within a recipe, or alone where --input is given."""
    if bool(alone["given"]) != bool(alone["output"]):
        _usage("--input and --output go together", json_=json_)
    if alone["given"]:
        overrides = [*(set_ or []), *flags]
        _do(
            "alone",
            lambda c: c.alone(
                c.Alone(verb, **alone), recipe, overrides, force=force, allow=c.Allowed(allow_code, allow_code_exec)
            ),
            json_=json_,
            quiet=quiet,
        )
    else:
        _do(
            "running",
            lambda c: c.step(
                verb, recipe, set_ or [], workspace, flags=flags, force=force, allow=c.Allowed(allow_code, allow_code_exec)
            ),
            json_=json_,
            quiet=quiet,
        )


def _ask(question: str, default: str) -> str:
    """Put a question on the terminal; the end of input is an interruption."""
    try:
        return str(typer.prompt(question, default=default, err=True))
    except typer.Abort:
        raise KeyboardInterrupt from None


def _points(given: list[str], *, json_: bool) -> dict[str, float]:
    """METRIC=POINTS as numbers by metric."""
    found = {}
    for one in given:
        metric, _, points = one.partition("=")
        try:
            found[metric] = float(points)
        except ValueError:
            _usage(f"--max-drop takes METRIC=POINTS, such as rougeL=1.0, and not {one!r}", json_=json_)
    return found


def _flags(values: dict[str, object]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


def _do(family: str, command: "Callable[[Any], Result]", *, json_: bool, quiet: bool) -> None:
    """Run a command of `llmkit.commands.FAMILY`, print its result, and turn whatever it raises into an exit code."""
    try:
        commands = importlib.import_module(f"llmkit.commands.{family}")
        progress.calm_libraries()
        if _launched():
            result = _together(lambda: command(commands), quiet=quiet)
        else:
            progress.install(_sink(quiet=quiet))
            result = command(commands)
        if not result.text and not result.data:
            pass  # it has streamed what it had to say
        elif json_:
            typer.echo(json.dumps({**result.data, **_failed(result.failure)}, ensure_ascii=False))
        else:
            typer.echo(result.text)
        if result.failure:
            _fail(result.failure)
    except errors.LlmkitError as error:
        _fail(error, json_=json_)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was finished is kept, run again to go on", err=True)
        raise SystemExit(_INTERRUPTED) from None
    except BrokenPipeError:
        _forget_stdout()
        raise SystemExit(3) from None
    except Exception as error:  # noqa: BLE001 - the one boundary
        _fail(errors.told(error), json_=json_)


def _launched() -> bool:
    """Whether an outside launcher has started this process among others."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def _together(command: "Callable[[], Result]", *, quiet: bool) -> "Result":
    """The first process runs the command; the others do what it hands them, and leave with its exit code."""
    from llmkit.engine import ranks

    if os.environ["RANK"] != "0":
        raise SystemExit(ranks.follow())
    progress.install(_sink(quiet=quiet))
    with ranks.leading():
        return command()


def _sink(*, quiet: bool) -> progress.Sink:
    from llmkit.report import console

    if quiet:
        return console.Quiet()
    return console.Live() if sys.stderr.isatty() else console.Plain()


def _fail(error: errors.LlmkitError, *, json_: bool = False) -> NoReturn:
    """Tell an error on stderr, under --json on stdout too, and exit with its code."""
    typer.echo(telling.lines(error), err=True)
    if json_:
        try:
            # In ASCII: what an error quotes may be no text, or mean something to a terminal.
            typer.echo(json.dumps(_failed(error)))
        except BrokenPipeError:
            _forget_stdout()
    raise SystemExit(error.exit_code)


def _failed(error: errors.LlmkitError | None) -> dict[str, object]:
    return {} if error is None else {"error": telling.fields(error)}


def _forget_stdout() -> None:
    """Whoever read stdout has gone; there is no one left to tell, at the interpreter's end either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(what: str, *, json_: bool) -> NoReturn:
    _fail(errors.UsageError(what, code="LK0105", next="see --help"), json_=json_)
