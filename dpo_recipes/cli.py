"""The command line: a few lines for each verb, heavy imports inside. The only file that prints errors and exits."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from . import cli_options as options
from . import option_values, result_tables, results, terminal
from .command_words import refuse_mistyped_options, with_run_of_resume
from .commands import recipes as recipe_files
from .errors import Finding, RecipeError, UsageError, nearest
from .recipe import catalogue, overrides
from .recipe.judges import Endpoint
from .recipe.recipe import Recipe
from .runs.files import to_json
from .sentences import LastingConsole, Sentence
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
                known: list[str] = []
                for parameter in command.get_params(ctx):
                    known.extend(parameter.opts)
                refuse_mistyped_options(args[1:], known)
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


# ------------------------------------------------------------------------------------------------- the verbs


@app.callback(invoke_without_command=True)
def top(version: options.Version = False) -> None:
    if version:
        print(metadata.version("dpo-recipes"))


@app.command("list", rich_help_panel=LOOK)
def list_(
    model: options.OfModel = None,
    adapter: options.OfAdapter = None,
    gpu: options.OfMemory = None,
    as_json: options.AsJson = False,
) -> None:
    """The recipes: name, model, data, loss, adapter, and what each is."""
    with _other_output_apart(as_json):
        recipes = recipe_files.list_(model=model, adapter=adapter, gpu=gpu)
    if as_json:
        _print_json(recipes)
        return
    results.print_recipes(recipes, gpu)


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def show(
    recipe: options.RecipeName,
    changes: options.Changes = None,
    changed: options.Changed = False,
    as_json: options.AsJson = False,
) -> None:
    """Every value of a recipe with its origin, then what differs from TRL's own defaults."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        from .commands.show import show as resolved_values

        shown = resolved_values(value, changed=changed)
    if as_json:
        _print_json(shown)
        return

    results.print_values(shown, changed=changed)


@app.command(rich_help_panel=MAKE)
def new(
    name: options.NewName, source: options.Source = recipe_files.TEMPLATE, from_yaml: options.FromYaml = None
) -> None:
    """A recipe of your own: copy one to recipes/NAME.py, or read the YAML of another program."""
    if from_yaml is not None:
        if source != recipe_files.TEMPLATE:
            raise UsageError("--from and --from-yaml: one of the two.")
        results.print_imported(name, *recipe_files.new_from_yaml(name, from_yaml))
        return
    file = recipe_files.new(name, source)
    if source == recipe_files.TEMPLATE:
        print(f"{file} is yours. Set its model and data, then: dpo-recipes check {name}")
        print(f"It is a copy of {source}; to copy another, add --from with one that dpo-recipes list names.")
    else:
        print(f"{file} is yours, a copy of {source}. Edit it, then: dpo-recipes check {name}")


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def preview(
    recipe: options.RecipeName,
    changes: options.Changes = None,
    count: options.PairCount = 3,
    as_json: options.AsJson = False,
) -> None:
    """A few pairs as the model sees them; exit 1 where a run would stop."""
    with _other_output_apart(as_json):
        value = _recipe(recipe, changes)
        from .commands.preview import preview as preview_pairs

        seen = preview_pairs(value, count=count, console=Console(quiet=as_json))
    _report(as_json=as_json, **seen)


@app.command(rich_help_panel=LOOK, context_settings=LENIENT)
def check(
    recipe: options.RecipeName,
    changes: options.Changes = None,
    gpu: options.GpuMemory = None,
    num_processes: options.NumProcesses = None,
    engine: options.EngineName = None,
    run: options.RealSteps = False,
    pairs: options.SuspectPairs = False,
    to: options.PairsFile = None,
    as_json: options.AsJson = False,
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
def doctor(as_json: options.AsJson = False) -> None:
    """This machine: versions, devices, hub, caches, known problems."""
    with _other_output_apart(as_json):
        from .commands.doctor import doctor as look_at_this_machine

        findings = list(look_at_this_machine())
    _report(findings, as_json)


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def train(
    recipe: options.RecipeName,
    changes: options.Changes = None,
    runs: options.RunsFolder = Path("runs"),
    resume: options.Resumed = None,
    once: options.Once = False,
    allow_change: options.AllowedChanges = None,
    launch: options.LaunchEngine = None,
    num_processes: options.LaunchedProcesses = None,
    num_machines: options.NumMachines = None,
    machine_rank: options.MachineRank = None,
    main_process_ip: options.MainIp = None,
    main_process_port: options.MainPort = None,
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
        if once:
            arguments.append("--once")
        for name in allow_change or []:
            arguments += ["--allow-change", name]
        raise typer.Exit(start_processes(value, launch, arguments, **machines))
    for name, given in machines.items():
        if given is not None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to --launch, which is not given.")

    from .commands.train import train as train_recipe

    console = LastingConsole()
    train_recipe(value, runs=runs, resume=resume, once=once, allow_change=allow_change or (), console=console)


@app.command(rich_help_panel=MAKE, context_settings=LENIENT)
def pairs(
    recipe: options.RecipeName,
    prompts: options.PromptsFile,
    changes: options.Changes = None,
    samples: options.ReplyCount = 4,
    to: options.PairsFolder = None,
    pairing: options.PairingKind = "all",
    per_prompt: options.PerPrompt = None,
    temperature: options.Temperature = 1.0,
    max_new_tokens: options.MaxNewTokens = None,
    rounds: options.RoundCount = None,
    reference: options.RoundReference = None,
    endpoint: options.EndpointUrl = None,
    endpoint_model: options.EndpointModel = None,
    api_key_env: options.EndpointKey = None,
    as_json: options.AsJson = False,
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
            "endpoint": option_values.served(
                Endpoint, "--endpoint", endpoint, endpoint_model, "--api-key-env", api_key_env
            ),
            "console": console,
        }
        folder = to or Path(f"{value.name}-pairs")
        if rounds is None:
            from .commands.pairs import how_to_train_on
            from .commands.pairs import pairs as make_pairs

            result: Any = make_pairs(value, to=folder, **sampling)
        else:
            from .commands.rounds import rounds as train_in_rounds

            done = train_in_rounds(value, count=rounds, to=folder, reference=reference, **sampling)
            result = [{"pairs": each.pairs, "run": each.run.path, **each.run.evaluation} for each in done]
    if as_json:
        _print_json(result)
    elif rounds is None:
        print(f"{folder} holds the pairs. {how_to_train_on(folder, value)}")


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def sweep(
    recipe: options.RecipeName,
    changes: options.SweptValues = None,
    seeds: options.SeedCount = None,
    to: options.SweepFolder = None,
    as_json: options.AsJson = False,
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
def compare(runs: options.FinishedRuns, as_json: options.AsJson = False) -> None:
    """Runs beside each other: numbers, differences with intervals, and why they may differ."""
    from .commands.compare import compare as compare_runs

    result = compare_runs(*runs)
    if as_json:
        _print_json(result)
        return

    results.print_comparison(result, runs)


@app.command(rich_help_panel=RUN)
def chat(
    run: options.FinishedRun,
    prompt: options.PromptText = None,
    system: options.SystemText = None,
    temperature: options.ChatTemperature = 0.7,
    max_new_tokens: options.ChatNewTokens = 256,
    seed: options.ChatSeed = 0,
    as_json: options.AsJson = False,
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
def reference(
    recipe: options.RecipeName,
    out: options.ReferenceFolder,
    changes: options.Changes = None,
    as_json: options.AsJson = False,
) -> None:
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
    run: options.RunName = None,
    changes: options.Changes = None,
    policy: options.PolicyName = None,
    reference: options.ReferenceName = None,
    data: options.PairsPath = None,
    reward_model: options.RewardModelName = None,
    judge: options.JudgeUrl = None,
    judge_model: options.JudgeModel = None,
    judge_key_env: options.JudgeKey = None,
    dial: options.DialFactors = None,
    to: options.FilesTo = None,
    as_json: options.AsJson = False,
) -> None:
    """A run, or any policy beside its reference, measured: held-out pairs, answers side by side, KL, reward."""
    changes = list(changes or [])
    if run is not None and "=" in run and not Path(run).exists():
        changes.insert(0, run)
        run = None
    reward = option_values.reward_of(reward_model, judge, judge_model, judge_key_env)
    factors = option_values.factors_of(dial)
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

    results.print_measured(result, of_a_run=run is not None)
    _stop_over_budget(result)


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def export(
    run: options.ExportedRun,
    out: options.ExportFolder = None,
    changes: options.Changes = None,
    merged: options.ExportMerged = False,
    dtype: options.ExportDtype = None,
    dial: options.ExportDial = None,
    trl: options.ExportTrl = False,
    push: options.ExportPush = None,
    public: options.ExportPublic = False,
    job: options.ExportJob = None,
    nodes: options.JobNodes = None,
    gpus_per_node: options.JobGpus = None,
    gpu_type: options.JobGpuType = None,
    launch: options.JobEngine = None,
    time: options.JobTime = None,
    keep: options.JobKeep = None,
    account: options.JobAccount = None,
    partition: options.JobPartition = None,
    package: options.JobPackage = None,
    as_json: options.AsJson = False,
) -> None:
    """For use elsewhere: a model (--merged, --dial), a script for TRL alone (--trl), the file of a job (--to)."""
    of_job: dict[str, Any] = {
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "gpu_type": gpu_type,
        "launch": launch,
        "time": time,
        "keep": keep,
        "account": account,
        "partition": partition,
        "package": package,
    }
    with _other_output_apart(as_json or job is not None):
        from .commands.export import export as export_model

        console = Console(stderr=True) if as_json or job is not None else LastingConsole()
        result = export_model(
            run,
            dial=dial,
            merged=merged,
            dtype=dtype,
            trl=trl,
            job=option_values.job_of(job, of_job),
            out=out,
            changes=changes or [],
            push=push,
            public=public,
            console=console,
        )
    if as_json:
        _print_json(result)
        return

    if job is not None:
        results.print_job(result, out)
        return
    assert out is not None
    if trl:
        results.print_trl_script(result, out)
    else:
        results.print_exported_model(result, out, merged=merged, public=public)


@app.command(rich_help_panel=RUN, context_settings=LENIENT)
def bench(
    recipe: options.RecipeName,
    changes: options.Changes = None,
    lengths: options.Lengths = None,
    random_model: options.RandomModel = None,
    against_defaults: options.AgainstDefaults = False,
    compact_head: options.CompactHead = False,
    batches: options.Batches = 8,
    as_json: options.AsJson = False,
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
        Console().print(
            result_tables.bench_table(result), *result_tables.bench_lines(result), sep="\n", highlight=False
        )


@app.command(rich_help_panel=LOOK)
def report(runs: options.RunFolders, to: options.PageFile = None) -> None:
    """One HTML file about a run, finished or not, or about several laid over each other; prints its path."""
    from .commands.report import report as write_report

    print(write_report(runs, to=to))


# ---------------------------------------------------------------------------------- what the verbs have alike


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
