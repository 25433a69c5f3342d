"""The arguments and options of the verbs: how each is written, what its help says, and what completes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .benchmark.lengths import PROFILES
from .benchmark.random_models import SIZES
from .planning.engines import ENGINES
from .recipe import catalogue

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
EXPORTED_RUN_HELP = "A run folder; for --trl and --to also a recipe that has not been run."
EXPORT_OUT_HELP = "The new folder to write; of --to a file, in place of standard output."
EXPORT_JOB_HELP = "A file that trains it elsewhere: sbatch for Slurm, sky for SkyPilot, hf-jobs for Hugging Face Jobs."
OF_JOB = "Of --to"
JOB_GPU_HELP = "Which GPUs, such as H100; of hf-jobs its hardware, such as a100x4."
JOB_ENGINE_HELP = f"What spreads it over several GPUs: {', '.join(ENGINES)}."
JOB_KEEP_HELP = "Where run and caches stay: a folder, of sky s3://NAME, of hf-jobs OWNER/NAME of a bucket."
JOB_PACKAGE_HELP = "What pip installs there as dpo-recipes, such as a wheel; else as it is installed here."
EXPORT_PUSH_HELP = "Send the model to this new repository of the hub as well, private without --public."
EXPORT_TRL_HELP = "The pairs, a plain script and the file of `trl dpo --config`, which train the same."
EXPORT_MERGED_HELP = "One plain model: the adapter in the weights of its base, in 16 bits where these are stored so."
EXPORT_DTYPE_HELP = "Of --merged: bfloat16, float16 or float32, in place of the type in which the base is stored."
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
# Of jobs that may be started again, as export --to writes them: hidden for the same reason
Once = Annotated[bool, typer.Option("--once", hidden=True)]
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
ExportDtype = Annotated[str | None, typer.Option("--dtype", metavar="TYPE", help=EXPORT_DTYPE_HELP)]
ExportDial = Annotated[float | None, typer.Option("--dial", metavar="FACTOR", help=EXPORT_DIAL_HELP)]
ExportFolder = Annotated[Path | None, typer.Option("--out", metavar="PLACE", help=EXPORT_OUT_HELP, show_default=False)]
ExportJob = Annotated[str | None, typer.Option("--to", metavar="KIND", help=EXPORT_JOB_HELP)]
JobNodes = Annotated[int | None, typer.Option("--nodes", rich_help_panel=OF_JOB, help="How many machines: 1.")]
JobGpus = Annotated[
    int | None, typer.Option("--gpus-per-node", rich_help_panel=OF_JOB, help="How many GPUs each machine has: 1.")
]
JobGpuType = Annotated[
    str | None, typer.Option("--gpu-type", rich_help_panel=OF_JOB, metavar="NAME", help=JOB_GPU_HELP)
]
JobEngine = Annotated[
    str | None, typer.Option("--launch", rich_help_panel=OF_JOB, metavar="ENGINE", help=JOB_ENGINE_HELP)
]
JobTime = Annotated[
    str | None, typer.Option("--time", rich_help_panel=OF_JOB, metavar="LIMIT", help="Such as 90m, 24h or 2d.")
]
JobKeep = Annotated[str | None, typer.Option("--keep", rich_help_panel=OF_JOB, metavar="PLACE", help=JOB_KEEP_HELP)]
JobAccount = Annotated[
    str | None, typer.Option("--account", rich_help_panel=OF_JOB, metavar="NAME", help="Of Slurm: who pays.")
]
JobPartition = Annotated[
    str | None, typer.Option("--partition", rich_help_panel=OF_JOB, metavar="NAME", help="Of Slurm: which machines.")
]
JobPackage = Annotated[
    str | None, typer.Option("--package", rich_help_panel=OF_JOB, metavar="WHAT", help=JOB_PACKAGE_HELP)
]
FilesTo = Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help=TO_HELP, show_default=False)]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN", help="A run folder, or several.", show_default=False)]
PageFile = Annotated[Path | None, typer.Option("--to", metavar="FILE", help=PAGE_HELP, show_default=False)]
Version = Annotated[bool, typer.Option("--version", help="Print the version.")]
