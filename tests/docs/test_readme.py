"""The documents do what they say: Python blocks run, commands exist, links lead somewhere, tables are complete."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama, with_lora

import densepath
from densepath.cli.arguments import parse
from densepath.cli.main import COMMANDS
from densepath.config.answers import EvalArguments, GenerateArguments
from densepath.config.experiment import ExperimentArguments
from densepath.config.judging import JudgeCommandArguments
from densepath.config.pages import ServeArguments, ViewArguments
from densepath.config.reward import ScoreArguments
from densepath.config.run import PlanArguments, PurifyArguments, RunArguments, RunCommandArguments
from densepath.config.training import DPRArguments, PurifyCommandArguments, SFTArguments
from densepath.methods import get_method, method_names
from densepath.pipeline.experiment import check_setting
from densepath.pipeline.recipe import read_recipe

ROOT = Path(__file__).parents[2]
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}

ARGUMENTS = {
    "run": RunCommandArguments,
    "plan": PlanArguments,
    "sft": SFTArguments,
    "purify": PurifyCommandArguments,
    "dpr": DPRArguments,
    "score": ScoreArguments,
    "eval": EvalArguments,
    "generate": GenerateArguments,
    "judge": JudgeCommandArguments,
    "serve": ServeArguments,
    "view": ViewArguments,
}
PASSTHROUGH = {"sft_": "SFTConfig", "dpr_": "DPRConfig"}
CHEAP = ("densepath --help", "densepath env")


def blocks(language: str) -> list[tuple[str, str]]:
    """(place, code) of every fenced block of a language in the documents."""
    found = []
    for name, text in TEXTS.items():
        for match in re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{name}:{line}", textwrap.dedent(match.group(2))))
    return found


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, flags) of every `densepath COMMAND ...` in a document."""
    joined = text.replace("\\\n", " ")
    found = re.findall(rf"densepath ({'|'.join(COMMANDS)})(?![\w-])([^\n`#]*)", joined)
    return [(command, re.findall(r"--([A-Za-z_-]+)", rest)) for command, rest in found]


# -- Python blocks -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the models and files that the documents name."""
    folder = tmp_path_factory.mktemp("workplace")
    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(("my-model", "sft-model", "model-before-sft")):
        model = tiny_llama(vocab_size=len(tokenizer), seed=seed)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    adapter = with_lora(tiny_llama(vocab_size=len(tokenizer)))
    adapter.peft_config["default"].base_model_name_or_path = "my-model"
    adapter.save_pretrained(folder / "sft-adapter")
    rows = densepath.generate_tasks(120, seed=1)
    demonstrations = "".join(json.dumps(row) + "\n" for row in rows)
    prompts = "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows)
    (folder / "demonstrations.jsonl").write_text(demonstrations, encoding="utf-8")
    (folder / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    return folder


@pytest.fixture
def few_steps(monkeypatch):
    """Make the configurations that a block writes, then cut their steps and lengths to a test's."""

    def capped(kind, caps, *given, **values):
        made = kind(*given, **values)  # with the document's values
        return type(made)(*given, **{**values, **caps})

    few = {"max_completion_length": 8, "num_generations": 2}
    run = {"sft_max_steps": 2, "dpr_max_steps": 1, "num_validation_samples": 4, "num_test_samples": 4}
    run |= {"sft_per_device_train_batch_size": 2, "dpr_per_device_train_batch_size": 4, "num_report_samples": 1}
    run |= {"purify_behaviours": [2], "purify_steps": 1, "purify_final_steps": 1, "purify_samples": 4}
    dpr = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    for name, caps in (("RunArguments", run), ("DPRConfig", dpr)):
        kind = functools.partial(capped, getattr(densepath, name), {**few, **caps})
        monkeypatch.setattr(densepath, name, kind, raising=False)


@functools.cache
def python_blocks() -> dict[str, str]:
    """Place -> code; those of the walk-through are one program, which has a test of its own."""
    return {place: code for place, code in blocks("python") if not place.startswith("docs/walkthrough.md")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", python_blocks())
def test_python_blocks_run(place, workplace, few_steps, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    namespace = {"__name__": "__main__"}
    exec(compile(python_blocks()[place], place, "exec"), namespace)
    trainer = namespace.get("trainer")
    if trainer is not None and trainer.state.log_history:
        functions = {"dense_reward_sum": "dense_reward_sum"}  # those of the user's are documented as NAME
        logged = {
            re.sub(r"^(rewards|reward_corr)/(\w+)", lambda match: f"{match[1]}/{functions.get(match[2], 'NAME')}", key)
            for row in trainer.state.log_history
            for key in row
        }
        assert "kl_sequence" in logged
        undocumented = {key for key in logged if f"`{key}`" not in TEXTS["docs/metrics.md"]}
        assert undocumented == set()
    if "report" in namespace:
        assert Path(namespace["report"]).is_file()
        results = json.loads(Path("runs/mine/results.json").read_text(encoding="utf-8"))
        selection = json.loads(Path("runs/mine/selection.json").read_text(encoding="utf-8"))
        sft = [
            json.loads(line) for line in Path("runs/mine/sft/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        (setting,) = results["settings"]
        keys = {*results, *setting, *setting["rows"][0], *setting["comparisons"][0], *selection, *selection["rows"][0]}
        keys |= {key for row in sft for key in row}
        assert {key for key in keys if f"`{key}`" not in TEXTS["docs/metrics.md"]} == set()
    if "scores" in namespace:
        assert capsys.readouterr().out.count("nats") == len(namespace["scores"].completion_ids[0])


def test_the_readme_shows_the_whole_job_and_the_trainer_in_under_15_lines():
    codes = [code for place, code in blocks("python") if place.startswith("README.md")]
    for name in ("run_pipeline(", "DPRTrainer(", "DenseReward."):
        (code,) = (code for code in codes if name in code)
        assert len([line for line in code.splitlines() if line.strip()]) < 15


# -- the public interface ----------------------------------------------------------------------------------------


def test_every_public_name_can_be_imported():
    assert set(densepath.__all__) == {"__version__", *densepath._EXPORTS}
    assert dir(densepath) == sorted(densepath.__all__)
    for name in densepath.__all__:
        assert getattr(densepath, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = densepath.nonsense


def test_the_type_checker_sees_every_public_name():
    source = Path(densepath.__file__).read_text(encoding="utf-8")
    typed = source.split("if TYPE_CHECKING:")[1].split("else:")[0]
    names = {name for line in re.findall(r"import (.+)", typed) for name in line.split(", ")}
    assert names == set(densepath._EXPORTS)


# -- commands and recipes ----------------------------------------------------------------------------------------


@functools.cache
def known_flags(command: str) -> frozenset[str]:
    """Flags of a command, those that it hands on to TRL included."""
    from trl import SFTConfig

    from densepath.trainers.dpr_config import DPRConfig

    if command not in ARGUMENTS:
        return frozenset(re.findall(r"--([a-z_-]+)", run_cli(command, "--help")))
    sft, dpr = ({f.name for f in dataclasses.fields(kind)} for kind in (SFTConfig, DPRConfig))
    handed_on = {
        "run": {f"sft_{name}" for name in sft} | {f"dpr_{name}" for name in dpr},
        "plan": {f"sft_{name}" for name in sft} | {f"dpr_{name}" for name in dpr},
        "sft": sft,
        "purify": sft,
        "dpr": dpr,
    }.get(command, set())
    own = {f.name for f in dataclasses.fields(ARGUMENTS[command])}
    return frozenset({"config", "debug", "help"} | own | handed_on)


def run_cli(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "densepath.cli.main", *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_flags_named_in_the_documents_exist(name):
    for command, flags in commands(TEXTS[name]):
        unknown = set(flags) - known_flags(command)
        assert unknown == set(), f"densepath {command}"


def test_an_unknown_flag_would_be_seen():
    ((command, flags),) = commands("densepath dpr --beta 0.5 \\\n    --betta 1")
    assert set(flags) - known_flags(command) == {"betta"}


def test_the_readme_has_the_order_of_a_reader():
    """What it does with the measured table and the heat map, what to type, the proof, how it works, the limits."""
    order = [
        *("What to expect", "What the reward sees", "Which command when", "Two commands"),
        *("On your own model and data", "Does it get better, against every control?", "How it works", "Limits"),
    ]
    headings = re.findall(r"^## (.+)$", TEXTS["README.md"], flags=re.MULTILINE)
    assert [heading for heading in headings if heading in order] == order
    top, *sections = re.split(r"^## ", TEXTS["README.md"], flags=re.MULTILINE)
    (status,) = re.findall(r"^\*\*Status\.\*\* (.+?)\n\n", top, flags=re.DOTALL | re.MULTILINE)
    assert "GPU" in status
    assert "quickstart-table" in sections[0]
    assert "images/view.png" in sections[1]
    assert "```python" in sections[1]


def test_every_command_stands_in_the_readme():
    assert {command for command, _ in commands(TEXTS["README.md"])} == set(COMMANDS)


@pytest.mark.parametrize("line", CHEAP)
def test_cheap_commands_of_the_readme_run(line):
    assert re.search(rf"^{line}\b", TEXTS["README.md"], flags=re.MULTILINE)
    assert "densepath" in run_cli(*line.split()[1:])


def test_make_targets_named_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for name, text in TEXTS.items():
        assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets, name


def check_recipe(path: Path) -> None:
    """A recipe of an experiment names its methods; any other is one of `densepath run`."""
    words = ["--config", str(path)]
    if "\nmethods:" in path.read_text(encoding="utf-8"):
        settings = read_recipe(*parse(ExperimentArguments, words, prog="", description="", passthrough=PASSTHROUGH))
        for setting in settings:
            check_setting(setting)
        others = {key for s in settings for plan in s.methods.values() for v in plan.variants for key in v.others}
    else:
        others = set(parse(RunArguments, words, prog="", description="", passthrough=PASSTHROUGH)[1])
    assert others <= known_flags("run")


def test_models_of_a_run_in_the_documents_are_of_arms_that_leave_one():
    for name, text in TEXTS.items():
        for arm in re.findall(r"runs/mine/(\w+)/model", text):
            assert arm == "sft" or get_method(arm).train is not None, (name, arm)


@pytest.mark.parametrize(("place", "code"), blocks("yaml"))
def test_recipes_in_the_documents_parse(place, code, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(code, encoding="utf-8")
    check_recipe(path)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_parse(path):
    check_recipe(path)


# -- links and tables --------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Anchors of a document as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for mark, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", TEXTS[name]):
        if mark or target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", NAMES)
def test_inline_formulas_survive_markdown(name):
    """Markdown eats a backslash before punctuation, and a bar inside of a formula ends a table's cell."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", TEXTS[name], flags=re.DOTALL)
    for line in prose.splitlines():
        for formula in re.findall(r"\$([^$\n]+)\$", line):
            assert not re.search(r"\\[,;:!{}|\\]", formula), formula
            assert not (line.lstrip().startswith("|") and "|" in formula), formula


def test_trainer_doc_has_every_argument_that_differs_from_grpo():
    from trl import GRPOConfig

    from densepath.trainers.dpr_config import DPRConfig

    theirs = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
    for field in dataclasses.fields(DPRConfig):
        if field.name not in theirs or field.default != theirs[field.name]:
            shown = json.dumps(field.default) if isinstance(field.default, str) else repr(field.default)
            assert f"| `{field.name}` | `{shown}` |" in TEXTS["docs/trainer.md"], field.name


def test_experiment_doc_has_every_method_with_its_keys():
    listed = {}
    for name, keys, control in re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]*)\| (yes|no) \|$", TEXTS["docs/experiment.md"], re.M
    ):
        listed[name] = re.findall(r"`(\w+)`", keys), control == "yes"
    shared = {field.name for field in dataclasses.fields(RunArguments)}
    methods = {name: get_method(name) for name in method_names()}
    assert listed == {
        name: ([f.name for f in dataclasses.fields(method.arguments) if f.name not in shared], method.control)
        for name, method in methods.items()
    }


def test_purify_doc_has_every_argument_of_purification():
    for field in dataclasses.fields(PurifyArguments):
        assert f"| `{field.name}` |" in TEXTS["docs/purify.md"], field.name


def test_design_doc_names_every_room():
    rooms = {path.stem for path in Path(densepath.__file__).parent.iterdir() if (path / "__init__.py").exists()}
    picture = TEXTS["docs/design.md"].split("```")[1]
    assert {room for room in rooms if not re.search(rf"^{room}\b", picture, flags=re.MULTILINE)} == set()
