"""The command line: a few lines for each verb, heavy imports inside. The only file that prints errors and exits."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from typer.core import TyperGroup

from . import terminal
from .benchmark.lengths import PROFILES
from .benchmark.random_models import SIZES
from .command_words import refuse_mistyped_options, with_run_of_resume
from .commands import recipes as recipe_files
from .errors import Finding, RecipeError, UsageError, nearest
from .planning.engines import ENGINES
from .recipe import catalogue, overrides
from .recipe.judges import Endpoint, JudgeEndpoint, RewardModel
from .recipe.recipe import PREPARED, Recipe
from .runs.files import to_json
from .sentences import LastingConsole, Sentence, print_line
from .side_by_side import SideBySide, prompts
from .signals import Stopped, stop_signals_raised
from .told_once import told_once


class Verbs(TyperGroup):
    """The verbs; a word that is none of them is told which there are, and a recipe how it is trained."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        command = self.get_command(ctx, word)
        if command is not None:
            if command.context_settings.get("ignore_unknown_options"):
                options = [option for parameter in command.get_params(ctx) for option in parameter.opts]
                refuse_mistyped_options(args[1:], options)
            return super().resolve_command(ctx, with_run_of_resume(args))

        if word in catalogue.recipe_files() or word.endswith(".py"):
            raise UsageError(f"{word} is a recipe, not a command. To train it: dpo-recipes train {word}")

        verbs = self.list_commands(ctx)
        raise UsageError(
            f"No such command {word!r}.{nearest(word, verbs)} The commands: {', '.join(verbs)}. "
            "What each does: dpo-recipes --help"
        )


app = typer.Typer(
    name="dpo-recipes",
    cls=Verbs,
    help="Preference tuning recipes: one small Python file becomes a trained model, through Hugging Face TRL.",
    epilog="Start with: dpo-recipes train quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The panels of `dpo-recipes --help`.
LOOK = "Look"
MAKE = "Make your own"
RUN = "Run"

# An unknown option falls into the overrides, where the message can say how values are written.
LENIENT = {"ignore_unknown_options": True}

CHANGES_HELP = "Changes: beta=0.05 adapter.r=64 data.train=train trl.max_grad_norm=0.5 adapter=none"

SOURCE_HELP = "The recipe to copy: one that `dpo-recipes list` names, or the path of a file."

FROM_YAML_HELP = "A DPO run of TRL, the alignment handbook, Axolotl or LLaMA-Factory, read as a recipe."
RESUME_HELP = "Go on with a run that was stopped: this folder, or the last one of the recipe."
ALLOW_CHANGE_HELP = "Of --resume: what may be another than when the run began; may be given again."
LENGTHS_HELP = f"Random words in these lengths, in place of the recipe's pairs: {', '.join(PROFILES)}."
RANDOM_MODEL_HELP = f"Random weights of this size, in place of the recipe's model: {', '.join(SIZES)}."
PROCESSES_HELP = "Plan for one of N such devices."
ENGINE_HELP = f"One of {', '.join(ENGINES)}."
LAUNCH_HELP = f"Several processes: {', '.join(ENGINES)}."
LAUNCHED_HELP = "How many; without it, one for each GPU."
POLICY_HELP = "In place of a run: the model to measure, or the folder of its adapter."
REFERENCE_HELP = (
    "What it is compared with: a model, or an adapter's folder; of an adapter its base, unless one is named."
)
DATA_HELP = "Pairs to measure it on, in place of the run's own; all of them are held out."
EXPORT_DIAL_HELP = "0.5 is half the way from the reference to the policy: near what twice the beta would have given."
EXPORTED_RUN_HELP = "A run folder; for --trl also a recipe that has not been run."
EXPORT_PUSH_HELP = "Send the model to this new repository of the hub as well, private without --public."
EXPORT_TRL_HELP = "The pairs, a plain script and the file of `trl dpo --config`, which train the same."
EXPORT_MERGED_HELP = "One plain model: the adapter in the weights of its base, in 16 bits where these are stored so."
TO_HELP = "Where the files go, in place of the run folder."
PAGE_HELP = "Where the page goes, in place of report.html in the run folder, or in the folder of several."
REWARD_MODEL_HELP = "A sequence classifier with one output, a folder or a hub id, that scores the answers."
DIAL_HELP = "What other betas would have given, from this run: 0.5 is half the way from the reference, 2 twice as far."
JUDGE_HELP = "An OpenAI-compatible endpoint, such as https://host/v1, that compares them. Prompts and answers go there."
JUDGE_MODEL_HELP = "The judge's model, as the endpoint names it."
ENDPOINT_HELP = "Sample where a model is served, such as http://localhost:8000/v1 of vLLM. The prompts go there."
ENDPOINT_MODEL_HELP = "The served model, as the endpoint names it."
JUDGE_KEY_HELP = "The environment variable that holds the endpoint's key; without it no key is sent."
PAIRS_FILE_HELP = "Where --pairs writes them, in place of RECIPE-suspects.jsonl."

PROMPTS_HELP = "One a line (.txt), or rows with `prompt`, `question`, `instruction` or `messages`."
PAIRS_FOLDER_HELP = "Where replies and pairs are kept, in place of RECIPE-pairs."
MAX_NEW_TOKENS_HELP = "Where a reply is cut off, in place of 256 or what max_length leaves."
SWEPT_HELP = "Values to combine: beta=0.05,0.1,0.5 loss=sigmoid,ipo"
SWEEP_FOLDER_HELP = "Where the runs go, in place of sweeps/RECIPE; given again, it is gone on with."
RUNS_HELP = "Two run folders or more; the others are compared with the first."
ROUNDS_HELP = "Train on the pairs too, then sample with what was trained: so many rounds."
ROUND_REFERENCE_HELP = "Of the rounds: the start of the first, or the policy that each starts from."


def _recipes_that_begin_with(incomplete: str) -> list[str]:
    """What a shell completes a recipe's name to."""
    return [name for name in catalogue.recipe_files() if name.startswith(incomplete)]


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A name, or the path of a file.",
        show_default=False,
        autocompletion=_recipes_that_begin_with,
    ),
]
Changes = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help=CHANGES_HELP, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Changed = Annotated[bool, typer.Option("--changed", help="Only what the recipe file or the command line has set.")]
OfModel = Annotated[str | None, typer.Option("--model", metavar="WORD", help="Only models with this in their name.")]
OfAdapter = Annotated[
    Literal["none", "lora", "qlora"] | None, typer.Option("--adapter", help="Only these; none: all weights train.")
]
OfMemory = Annotated[str | None, typer.Option("--gpu", metavar="MEMORY", help="Only what may fit into e.g. 24GB.")]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="The new recipe's name.", show_default=False)]
Source = Annotated[
    str, typer.Option("--from", metavar="RECIPE", help=SOURCE_HELP, autocompletion=_recipes_that_begin_with)
]
FromYaml = Annotated[Path | None, typer.Option("--from-yaml", metavar="FILE", help=FROM_YAML_HELP)]
PairCount = Annotated[int, typer.Option("-n", min=1, help="How many pairs.")]
GpuMemory = Annotated[str | None, typer.Option("--gpu", metavar="MEMORY", help="Plan for a device of e.g. 24GB.")]
NumProcesses = Annotated[int | None, typer.Option("--num-processes", metavar="N", help=PROCESSES_HELP)]
EngineName = Annotated[str | None, typer.Option("--engine", metavar="NAME", help=ENGINE_HELP)]
LaunchEngine = Annotated[str | None, typer.Option("--launch", metavar="ENGINE", help=LAUNCH_HELP)]
LaunchedProcesses = Annotated[int | None, typer.Option("--num-processes", metavar="N", help=LAUNCHED_HELP)]
# Of several machines, which the README tells of: the help stays on one screen.
NumMachines = Annotated[int | None, typer.Option("--num-machines", hidden=True)]
MachineRank = Annotated[int | None, typer.Option("--machine-rank", hidden=True)]
MainIp = Annotated[str | None, typer.Option("--main-process-ip", hidden=True)]
MainPort = Annotated[int | None, typer.Option("--main-process-port", hidden=True)]
RealSteps = Annotated[bool, typer.Option("--run", help="Take a few real steps beside the plan.")]
SuspectPairs = Annotated[bool, typer.Option("--pairs", help="Train on each half of the pairs, and name the suspects.")]
PairsFile = Annotated[Path | None, typer.Option("--to", metavar="FILE", help=PAIRS_FILE_HELP, show_default=False)]
ReferenceFolder = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder to write.")]
RunsFolder = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where run folders are made.")]
Resumed = Annotated[str | None, typer.Option("--resume", metavar="[RUN]", help=RESUME_HELP, show_default=False)]
AllowedChanges = Annotated[list[str] | None, typer.Option("--allow-change", metavar="NAME", help=ALLOW_CHANGE_HELP)]
Lengths = Annotated[str | None, typer.Option("--lengths", metavar="KIND", help=LENGTHS_HELP)]
RandomModel = Annotated[str | None, typer.Option("--random-model", metavar="SIZE", help=RANDOM_MODEL_HELP)]
AgainstDefaults = Annotated[bool, typer.Option("--against-defaults", help="TRL with its own defaults for speed.")]
CompactHead = Annotated[bool, typer.Option("--compact-head", help="TRL scores answers alone, as it does on a GPU.")]
PromptsFile = Annotated[str, typer.Option("--prompts", metavar="FILE", help=PROMPTS_HELP, show_default=False)]
ReplyCount = Annotated[int, typer.Option("-n", min=2, help="How many replies to each prompt.")]
PairsFolder = Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help=PAIRS_FOLDER_HELP, show_default=False)]
PairingKind = Annotated[
    Literal["all", "best_worst", "best_random"], typer.Option("--pairing", help="Which replies make a pair.")
]
PerPrompt = Annotated[int | None, typer.Option("--per-prompt", min=1, help="At most so many pairs of a prompt.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Of sampling; 1 is the model as it is.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help=MAX_NEW_TOKENS_HELP)]
EndpointUrl = Annotated[str | None, typer.Option("--endpoint", metavar="URL", help=ENDPOINT_HELP)]
EndpointModel = Annotated[str | None, typer.Option("--endpoint-model", metavar="NAME", help=ENDPOINT_MODEL_HELP)]
EndpointKey = Annotated[str | None, typer.Option("--api-key-env", metavar="VARIABLE", help=JUDGE_KEY_HELP)]
RoundCount = Annotated[int | None, typer.Option("--rounds", min=1, help=ROUNDS_HELP)]
RoundReference = Annotated[Literal["kept", "moved"] | None, typer.Option("--reference", help=ROUND_REFERENCE_HELP)]
SweptValues = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE,VALUE", help=SWEPT_HELP)]
SeedCount = Annotated[int | None, typer.Option("--seeds", min=2, help="Each combination with so many seeds, from 0.")]
SweepFolder = Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help=SWEEP_FOLDER_HELP)]
FinishedRuns = Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help=RUNS_HELP, show_default=False)]
FinishedRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
PromptText = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Ask this, and end.")]
SystemText = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="A system message before each prompt.")
]
ChatTemperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest answer.")]
ChatNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Where an answer is cut off.")]
ChatSeed = Annotated[int, typer.Option("--seed", min=0, help="Of answers that are drawn, the same for both sides.")]
Batches = Annotated[int, typer.Option("--batches", min=2, help="How many batches.")]
RunName = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run folder, such as runs/quickstart-...", show_default=False)
]
PolicyName = Annotated[str | None, typer.Option("--policy", metavar="FOLDER", help=POLICY_HELP)]
ReferenceName = Annotated[str | None, typer.Option("--reference", metavar="MODEL", help=REFERENCE_HELP)]
PairsPath = Annotated[str | None, typer.Option("--data", metavar="FILE", help=DATA_HELP)]
RewardModelName = Annotated[str | None, typer.Option("--reward-model", metavar="MODEL", help=REWARD_MODEL_HELP)]
JudgeUrl = Annotated[str | None, typer.Option("--judge", metavar="URL", help=JUDGE_HELP)]
JudgeModel = Annotated[str | None, typer.Option("--judge-model", metavar="NAME", help=JUDGE_MODEL_HELP)]
JudgeKey = Annotated[str | None, typer.Option("--judge-key-env", metavar="VARIABLE", help=JUDGE_KEY_HELP)]
DialFactors = Annotated[str | None, typer.Option("--dial", metavar="0.25,0.5,1,2", help=DIAL_HELP)]
ExportedRun = Annotated[str, typer.Argument(metavar="RUN", help=EXPORTED_RUN_HELP, show_default=False)]
ExportPush = Annotated[str | None, typer.Option("--push", metavar="ORG/NAME", help=EXPORT_PUSH_HELP)]
ExportPublic = Annotated[bool, typer.Option("--public", help="Of --push: for everybody to see.")]
ExportTrl = Annotated[bool, typer.Option("--trl", help=EXPORT_TRL_HELP)]
ExportMerged = Annotated[bool, typer.Option("--merged", help=EXPORT_MERGED_HELP)]
ExportDial = Annotated[float | None, typer.Option("--dial", metavar="FACTOR", help=EXPORT_DIAL_HELP)]
ExportFolder = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The new folder to write.")]
FilesTo = Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help=TO_HELP, show_default=False)]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN", help="A run folder, or several.", show_default=False)]
PageFile = Annotated[Path | None, typer.Option("--to", metavar="FILE", help=PAGE_HELP, show_default=False)]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]

# ------------------------------------------------------------------------------------------------- the verbs


@app.callback(invoke_without_command=True)
def top(version: Version = False) -> None:
    if version:
        print(metadata.version("dpo-recipes"))


@app.command("list", rich_help_panel=LOOK)
def list_(model: OfModel = None, adapter: OfAdapter = None, gpu: OfMemory = None, as_json: AsJson = False) -> None:
    """The recipes: name, model, data, loss, adapter, and what each is."""
    with _other_output_apart(as_json):
        recipes = recipe_files.list_(model=model, adapter=adapter, gpu=gpu)
    if as_json:
        _print_json(recipes)
        return
    if not recipes:
        print_line(Console(), "No recipe is like that. All of them: dpo-recipes list")
        return

    memory = [] if gpu is None else [recipe_files.memory_in_words(recipe) for recipe in recipes]
    Console().print(terminal.recipe_list(recipes, memory))
    if gpu is not None:
        print_line(
            Console(),
            "By formula, from the model's shape: between what every step holds, and more than one takes that reads "
            "pairs of max_length, one at a time unless the recipe says how many. What cannot fit is left out. What a "
            f"run on your pairs needs: dpo-recipes check NAME --gpu {gpu}",
        )


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def show(recipe: RecipeName, changes: Changes = None, changed: Changed = False, as_json: AsJson = False) -> None:
    """Every value of a recipe with its origin, then what differs from TRL's own defaults."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        from .commands.show import show as resolved_values

        shown = resolved_values(value, changed=changed)
    if as_json:
        _print_json(shown)
        return

    print(f"{shown['name']} on {shown['device']}: {shown['step']}\n")
    Console().print(terminal.values_table(shown["recipe"]))
    if not changed:
        reasons = [
            (key, entry["value"], entry["reason"]) for key, entry in shown["recipe"].items() if "reason" in entry
        ]
        if reasons:
            Console().print("", terminal.choices_table(reasons), sep="\n")
        if shown["left_open"]:
            Console().print("", Sentence(shown["left_open"]), sep="\n")
        differences = terminal.differences_table(shown["trl"])
        Console().print("\nDifferent from TRL's defaults:", differences, sep="\n", highlight=False)


@app.command(rich_help_panel=MAKE)
def new(name: NewName, source: Source = recipe_files.TEMPLATE, from_yaml: FromYaml = None) -> None:
    """A recipe of your own: copy one to recipes/NAME.py, or read the YAML of another program."""
    if from_yaml is not None:
        if source != recipe_files.TEMPLATE:
            raise UsageError("--from and --from-yaml: one of the two.")
        _show_imported(name, *recipe_files.new_from_yaml(name, from_yaml))
        return
    file = recipe_files.new(name, source)
    if source == recipe_files.TEMPLATE:
        print(f"{file} is yours. Set its model and data, then: dpo-recipes check {name}")
        print(f"It is a copy of {source}; to copy another, add --from with one that dpo-recipes list names.")
    else:
        print(f"{file} is yours, a copy of {source}. Edit it, then: dpo-recipes check {name}")


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def preview(recipe: RecipeName, changes: Changes = None, count: PairCount = 3, as_json: AsJson = False) -> None:
    """A few pairs as the model sees them; exit 1 where a run would stop."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        from .commands.preview import preview as preview_pairs

        seen = preview_pairs(value, count=count, console=Console(quiet=as_json))
    _report(as_json=as_json, **seen)


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def check(
    recipe: RecipeName,
    changes: Changes = None,
    gpu: GpuMemory = None,
    num_processes: NumProcesses = None,
    engine: EngineName = None,
    run: RealSteps = False,
    pairs: SuspectPairs = False,
    to: PairsFile = None,
    as_json: AsJson = False,
) -> None:
    """All that can be known before training; exit 1 on a fail."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        if to is not None and not pairs:
            raise UsageError("--to names the file of --pairs, which is not asked for.")
        from .commands.check import check as check_recipe

        suspects = (to or Path(f"{value.name}-suspects.jsonl")) if pairs else None
        console = Console(stderr=True) if pairs else Console(quiet=as_json)
        result = check_recipe(
            value, gpu=gpu, num_processes=num_processes, engine=engine, run=run, pairs=suspects, console=console
        )
    if result["data"] and not as_json:
        Console().print(terminal.data_table(result["data"]))
    _report(as_json=as_json, fold=True, **result)


@app.command(rich_help_panel=LOOK)
def doctor(as_json: AsJson = False) -> None:
    """This machine: versions, devices, hub, caches, known problems."""
    with _other_output_apart(as_json):
        from .commands.doctor import doctor as look_at_this_machine

        findings = list(look_at_this_machine())
    _report(findings, as_json)


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def train(
    recipe: RecipeName,
    changes: Changes = None,
    runs: RunsFolder = Path("runs"),
    resume: Resumed = None,
    allow_change: AllowedChanges = None,
    launch: LaunchEngine = None,
    num_processes: LaunchedProcesses = None,
    num_machines: NumMachines = None,
    machine_rank: MachineRank = None,
    main_process_ip: MainIp = None,
    main_process_port: MainPort = None,
) -> None:
    """Train a recipe: a run folder with the model, held-out numbers before and after, and answers side by side."""
    value = _recipe(recipe, changes)
    machines: dict[str, Any] = {
        "num_processes": num_processes,
        "num_machines": num_machines,
        "machine_rank": machine_rank,
        "main_process_ip": main_process_ip,
        "main_process_port": main_process_port,
    }
    if launch is not None:
        from .training.launcher import launch as start_processes

        arguments = [recipe, *(changes or []), "--runs", str(runs)]
        if resume is not None:
            arguments += ["--resume", resume]
        for name in allow_change or []:
            arguments += ["--allow-change", name]
        raise typer.Exit(start_processes(value, launch, arguments, **machines))
    for name, given in machines.items():
        if given is not None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to --launch, which is not given.")

    from .commands.train import train as train_recipe

    console = LastingConsole()
    train_recipe(value, runs=runs, resume=resume, allow_change=allow_change or (), console=console)


@app.command(rich_help_panel=MAKE, context_settings=LENIENT)
def pairs(
    recipe: RecipeName,
    prompts: PromptsFile,
    changes: Changes = None,
    samples: ReplyCount = 4,
    to: PairsFolder = None,
    pairing: PairingKind = "all",
    per_prompt: PerPrompt = None,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = None,
    rounds: RoundCount = None,
    reference: RoundReference = None,
    endpoint: EndpointUrl = None,
    endpoint_model: EndpointModel = None,
    api_key_env: EndpointKey = None,
    as_json: AsJson = False,
) -> None:
    """Pairs of the model's own replies, ranked by the recipe's reward; with --rounds, training on them in turns."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        if reference is not None and rounds is None:
            raise UsageError("--reference is that of --rounds, which is not asked for.")
        console = Console(stderr=True) if as_json else LastingConsole()
        sampling: dict[str, Any] = {
            "prompts": prompts,
            "samples": samples,
            "pairing": pairing,
            "per_prompt": per_prompt,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "endpoint": _served(Endpoint, "--endpoint", endpoint, endpoint_model, "--api-key-env", api_key_env),
            "console": console,
        }
        folder = to or Path(f"{value.name}-pairs")
        if rounds is None:
            from .commands.pairs import pairs as make_pairs

            result: Any = make_pairs(value, to=folder, **sampling)
        else:
            from .commands.rounds import rounds as train_in_rounds

            done = train_in_rounds(value, count=rounds, to=folder, reference=reference, **sampling)
            result = [{"pairs": each.pairs, "run": each.run.path, **each.run.evaluation} for each in done]
    if as_json:
        _print_json(result)
    elif rounds is None:
        print(f"{folder} holds the pairs. {_how_to_train_on(folder, value)}")


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def sweep(
    recipe: RecipeName,
    changes: SweptValues = None,
    seeds: SeedCount = None,
    to: SweepFolder = None,
    as_json: AsJson = False,
) -> None:
    """A run for each combination of values, beta=0.05,0.1,0.5 loss=sigmoid,ipo, and one table of all."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, None)
        from .commands.sweep import sweep as train_all

        folder = to or Path("sweeps") / value.name
        console = Console(stderr=True) if as_json else LastingConsole()
        result = train_all(value, changes or [], seeds=seeds, to=folder, console=console)
    if as_json:
        _print_json(result)
    else:
        print(f"{folder} holds the runs. One page of all: dpo-recipes report {folder}")
    if result["failed"]:
        raise typer.Exit(1)


@app.command(rich_help_panel=RUN)
def compare(runs: FinishedRuns, as_json: AsJson = False) -> None:
    """Runs beside each other: numbers, differences with intervals, and why they may differ."""
    from .commands.compare import compare as compare_runs

    result = compare_runs(*runs)
    if as_json:
        _print_json(result)
        return

    from .evaluation.closing_table import difference_rows, rows_of_runs

    console = Console()
    for letter, run in zip(terminal.LETTERS, runs, strict=False):
        console.print(f"{letter}  {run}", markup=False, highlight=False, soft_wrap=True)
    console.print(terminal.runs_table([str(run) for run in runs], rows_of_runs(result["runs"])))
    for letter, run in zip(terminal.LETTERS[1:], result["runs"][1:], strict=False):
        of_this_run = [difference for difference in result["differences"] if difference["run"] == run["run"]]
        console.print(terminal.differences_of_runs_table(letter, difference_rows(of_this_run)))
    if result["causes"]:
        console.print(terminal.causes_table(result["causes"], len(runs)))
    else:
        print_line(console, "Their folders differ in nothing that could change a result.")


@app.command(rich_help_panel=RUN)
def chat(
    run: FinishedRun,
    prompt: PromptText = None,
    system: SystemText = None,
    temperature: ChatTemperature = 0.7,
    max_new_tokens: ChatNewTokens = 256,
    seed: ChatSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Type a prompt, and see what reference and policy answer, side by side; in a pipe, a prompt a line."""
    console = Console(stderr=as_json)
    side_by_side = SideBySide(Console(quiet=as_json))
    typed = sys.stdin is not None and sys.stdin.isatty() and prompt is None
    with _other_output_apart(as_json), contextlib.closing(side_by_side):
        from .commands.chat import chat as answer

        answers = answer(
            run,
            prompts(console, typed) if prompt is None else [prompt],
            system=system,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            shown=side_by_side.show,
            answered=side_by_side.finish,
            console=Console(stderr=True),
        )
    if as_json:
        _print_json(answers)
    elif not answers:
        raise UsageError("No prompt was given: type one, write them into a pipe, or use --prompt TEXT.")


@app.command(rich_help_panel=MAKE, context_settings=LENIENT)
def reference(recipe: RecipeName, out: ReferenceFolder, changes: Changes = None, as_json: AsJson = False) -> None:
    """The reference's numbers for all pairs, as a folder for other runs."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        from .commands.reference import reference as compute_reference

        console = Console(stderr=True) if as_json else LastingConsole()
        identity = compute_reference(value, out=out, console=console)
    if as_json:
        _print_json(identity)
        return
    counts = identity["pairs"]
    print(
        f"{out} holds the reference log-probabilities of {counts['train']:,} train and {counts['eval']:,} eval pairs. "
        f"A run reads them with data.reference={out}"
    )


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def evaluate(
    run: RunName = None,
    changes: Changes = None,
    policy: PolicyName = None,
    reference: ReferenceName = None,
    data: PairsPath = None,
    reward_model: RewardModelName = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKey = None,
    dial: DialFactors = None,
    to: FilesTo = None,
    as_json: AsJson = False,
) -> None:
    """A run, or any policy beside its reference, measured: held-out pairs, answers side by side, KL, reward."""
    changes = list(changes or [])
    if run is not None and "=" in run and not Path(run).exists():
        changes.insert(0, run)
        run = None
    reward = _reward(reward_model, judge, judge_model, judge_key_env)
    factors = _factors(dial)
    with _other_output_apart(as_json):
        from .commands.evaluate import evaluate as measure

        result = measure(
            run,
            policy=policy,
            reference=reference,
            data=data,
            changes=changes,
            reward=reward,
            dial=factors,
            to=to,
            console=Console(stderr=True) if as_json else LastingConsole(),
        )
    if as_json:
        _print_json(result)
        _stop_over_budget(result)
        return

    from .evaluation.closing_table import compared

    sides = ("reference", "policy") if run is None else ("before", "after")
    rows = compared(result["before"], result["after"])
    Console().print(terminal.comparison_table(result["after"]["pairs"], rows, sides))
    if "dial" in result:
        Console().print(terminal.dial_table(result["dial"]))
    if result["written"]:
        print_line(Console(), f"{result['written']} holds the numbers, the pairs and the answers.")
    _stop_over_budget(result)


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def export(
    run: ExportedRun,
    out: ExportFolder,
    changes: Changes = None,
    merged: ExportMerged = False,
    dial: ExportDial = None,
    trl: ExportTrl = False,
    push: ExportPush = None,
    public: ExportPublic = False,
    as_json: AsJson = False,
) -> None:
    """For use elsewhere: --merged, a model without adapter; --dial, nearer to the reference; --trl, for TRL alone."""
    with _other_output_apart(as_json):
        from .commands.export import export as export_model

        console = Console(stderr=True) if as_json else LastingConsole()
        result = export_model(
            run,
            dial=dial,
            merged=merged,
            trl=trl,
            out=out,
            changes=changes or [],
            push=push,
            public=public,
            console=console,
        )
    if as_json:
        _print_json(result)
        return

    from .runs.model_card import merged_in_words, nearness_in_words, nearness_rows

    if trl:
        for sentence in result["left_out"]:
            print_line(Console(), f"Not in it: {sentence}")
        if result["why_no_yaml"] is not None:
            print_line(Console(), f"There is no file for trl dpo --config: {result['why_no_yaml']}.")
        print_line(Console(), f"{out} holds {', '.join(result['files'])}. Train with: python {out / 'train_dpo.py'}")
    elif merged:
        print_line(Console(), merged_in_words(result))
        print_line(Console(), f"{out} holds the merged model in {result['dtype']}, for whatever loads Transformers.")
    else:
        Console().print(terminal.nearness_table(result["dial"], nearness_rows(result)))
        print_line(Console(), nearness_in_words(result))
        print_line(Console(), f"{out} holds {result['form']}: an approximation of decoding with the dial.")
    if "pushed" in result:
        seen_by = "everybody" if public else "you alone"
        print_line(Console(), f"{result['pushed']} has it too, for {seen_by} to see.")


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def bench(
    recipe: RecipeName,
    changes: Changes = None,
    lengths: Lengths = None,
    random_model: RandomModel = None,
    against_defaults: AgainstDefaults = False,
    compact_head: CompactHead = False,
    batches: Batches = 8,
    as_json: AsJson = False,
) -> None:
    """The recipe's steps in TRL's own trainer and in ours, in turns: seconds, memory, and whether they agree."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        from .commands.bench import bench as measure

        result = measure(
            value,
            lengths=lengths,
            random_model=random_model,
            against_defaults=against_defaults,
            compact_head=compact_head,
            batches=batches,
            console=Console(stderr=as_json),
        )
    if as_json:
        _print_json(result)
    else:
        Console().print(terminal.bench_table(result), *terminal.bench_lines(result), sep="\n", highlight=False)


@app.command(rich_help_panel=LOOK)
def report(runs: RunFolders, to: PageFile = None) -> None:
    """One HTML file about a run, finished or not, or about several laid over each other; prints its path."""
    from .commands.report import report as write_report

    print(write_report(runs, to=to))


# ---------------------------------------------------------------------------------- what the verbs have alike


def _show_imported(name: str, file: Path, imported: Any) -> None:
    """What became of a YAML file: what is said in other words, what is not kept, and where the recipe is."""
    for note in imported.notes:
        print_line(Console(), note)
    if imported.left_out:
        Console().print(terminal.left_out_table(imported.program, imported.left_out))
    print_line(Console(), f"{file} is yours, a run of {imported.program}. Look at it: dpo-recipes check {name}")


def _recipe(name: str, changes: list[str] | None) -> Recipe:
    """The recipe of a name or a path, with the changes that were typed behind it."""
    return overrides.apply(catalogue.load(name), changes or [])


@contextlib.contextmanager
def _other_output_apart(as_json: bool) -> Iterator[None]:
    """Where JSON is asked for, what a recipe's own functions or a library print goes to standard error meanwhile.

    So does what a program prints that they start: the file descriptor itself points there.
    """
    if not as_json or sys.stdout is None:  # it is None where standard output was closed from the start
        yield
        return

    sys.stdout.flush()
    standard_output = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()  # what was printed past the redirection, as by a function that kept the stream
        os.dup2(standard_output, 1)
        os.close(standard_output)


def _how_to_train_on(folder: Path, recipe: Recipe) -> str:
    """What stands behind the pairs that were made: how a run takes them."""
    if PREPARED in recipe.data.name:  # of such a recipe the command line changes no part
        return "The same command with --rounds 1 trains on them, too."
    return f"Train on them: dpo-recipes train {recipe.name} data.path={folder} data.train=train data.eval=eval"


# A model behind an endpoint, as the option of its URL and those beside it name it
Served = TypeVar("Served", Endpoint, JudgeEndpoint)


def _served(
    kind: type[Served], option: str, url: str | None, model: str | None, key_option: str, key_env: str | None
) -> Served | None:
    """What an option such as --endpoint URL names, with what stands in the options beside it; None without it."""
    if url is None:
        if model is not None or key_env is not None:
            raise UsageError(f"{option}-model and {key_option} belong to {option} URL, which is not given.")
        return None
    if model is None:
        raise UsageError(f"{option} {url}: name its model with {option}-model.")
    return kind(url, model=model, api_key_env=key_env)


def _reward(
    reward_model: str | None, judge: str | None, judge_model: str | None, judge_key_env: str | None
) -> RewardModel | JudgeEndpoint | None:
    """What judges the answers in place of the recipe's own reward."""
    if reward_model is not None and judge is not None:
        raise UsageError("--reward-model and --judge: one of the two.")
    if reward_model is not None:
        return RewardModel(reward_model)
    return _served(JudgeEndpoint, "--judge", judge, judge_model, "--judge-key-env", judge_key_env)


def _factors(text: str | None) -> list[float]:
    """The factors of --dial."""
    if text is None:
        return []
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(0 <= factor < math.inf for factor in factors):
        raise UsageError(f"--dial {text!r}: numbers of 0 and more, with commas between them, such as 0.25,0.5,1,2.")
    return factors


def _stop_over_budget(result: dict[str, Any]) -> None:
    """A limit of the recipe that a finished policy has crossed is an error, behind all its numbers."""
    if result["over_budget"]:
        raise RecipeError(result["over_budget"])


def _print_json(value: Any) -> None:
    print(to_json(value, indent=2, ascii_only=True))


def _report(findings: Iterable[Finding], as_json: bool, fold: bool = False, **numbers: Any) -> None:
    """Print findings, as a table or with `numbers` as JSON; exit 1 where one of them failed.

    `fold`: there are many, of which most pass: their count comes first, then the fails, and what passed is one line.
    """
    findings = list(findings)
    count = terminal.findings_count(findings)
    if as_json:
        _print_json({"findings": [finding._asdict() for finding in findings], **numbers})
    elif fold:
        Console().print(count, terminal.findings_table(terminal.folded(findings)), sep="\n", highlight=False)
    else:
        Console().print(terminal.findings_table(findings), count, sep="\n", highlight=False)

    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


# -------------------------------------------------------------------------------------------- how it all ends


def main() -> None:
    """What is the user's to fix becomes one message and an exit code; a traceback is a bug of ours."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? instead of a traceback
    try:
        with told_once(), stop_signals_raised():
            app()
    except Stopped as stopped:
        with contextlib.suppress(OSError):  # the terminal may be gone
            behind_ctrl_c = "\n" if sys.stderr.isatty() else ""  # which a terminal shows as ^C
            if not stopped.is_told:
                print(f"{behind_ctrl_c}{stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except RecipeError as error:
        left = getattr(error, "__notes__", [])  # what there is of a run
        message = ("\n" if "\n" in str(error) else " ").join([str(error), *left])
        console = Console(stderr=True)
        if console.is_terminal:
            console.print(Sentence(f" {message}", start="error:", style="bold red"))
        else:  # one line, whatever its width
            console.print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
