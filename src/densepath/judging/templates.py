"""Templates: what a judge is asked, and how its reply is read. Ours are the YAML files of `wording/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.config.recipe_yaml import load_mapping
from densepath.data.rows import short
from densepath.errors import ConfigError, DataError
from densepath.judging.protocol import JudgeRequest
from densepath.judging.verdicts import Letters, Marks, Rating, Reply
from densepath.records.codec import from_json
from densepath.records.completion import prompt_text
from densepath.records.judging import Judgement

WORDING = Path(__file__).parent / "wording"
TEMPLATES = tuple(sorted(path.stem for path in WORDING.glob("*.yaml")))
"""Names of the templates that come with densepath."""


@dataclass(frozen=True)
class Form:
    """What is asked of one kind of request.

    Attributes:
        messages: `role` and `content` of each turn; contents are Jinja templates of the names that `names_of` gives.
        turns: answered turns of the conversation.
        reference: whether it shows a right answer; a request without one is not asked so.
        categories: of the rows that are asked so; None for all.
    """

    messages: tuple[Mapping[str, str], ...]
    turns: int = 1
    reference: bool = False
    categories: tuple[str, ...] | None = None

    def fits(self, request: JudgeRequest) -> bool:
        """Whether a request is asked in this form."""
        category = (request.row or {}).get("category")
        return (
            self.turns == len(request.follow_ups) + 1
            and (not self.reference or request.reference is not None)
            and (self.categories is None or category in self.categories)
        )


@dataclass(frozen=True)
class Template:
    """What a judge is asked in each form, and how its reply is read.

    Attributes:
        name: what it is called in records.
        num_answers: how many answers it shows: 1 for a grade, 2 for a preference.
        reading: a menu of `marks`, a rating from `lowest` to `highest`, or what `letters` are worth.
        parameters: of an endpoint's call: temperature, max_tokens and so on.
        forms: the first one that fits a request is asked.

    Raises:
        DataError: no form, a number of answers that the reading does not fit.
    """

    name: str
    num_answers: int
    reading: Marks | Rating | Letters
    parameters: Mapping[str, Any]
    forms: tuple[Form, ...]

    def __post_init__(self) -> None:
        expected = {Marks: (2,), Rating: (1,), Letters: (1, 2)}[type(self.reading)]
        if self.num_answers not in expected:
            raise DataError(f"num_answers is {self.num_answers}; this reading is of {' or '.join(map(str, expected))}")
        if isinstance(self.reading, Letters) and self.num_answers == 2:
            outside = [worth for worth in self.reading.letters.values() if not 0 <= worth <= 1]
            if outside:
                raise DataError(f"a letter is worth {outside[0]}; a preference lies between 0 and 1")
        if not self.forms or not all(form.messages for form in self.forms):
            raise DataError("there is no form, or one without messages")

    @property
    def shows_reference(self) -> bool:
        """Whether a form shows a right answer, or asks otherwise where there is one."""
        contents = (turn["content"] for form in self.forms for turn in form.messages)
        return any(form.reference for form in self.forms) or any("ref_answer" in content for content in contents)

    def form(self, request: JudgeRequest) -> Form:
        """The first form that fits a request.

        Raises:
            DataError: there is none, or the request has another number of answers.
        """
        if len(request.answers) != self.num_answers:
            raise DataError(
                f"judge template {self.name} shows {self.num_answers} answers, and {len(request.answers)} were given"
            )
        form = next((form for form in self.forms if form.fits(request)), None)
        if form is None:
            raise DataError(
                f"judge template {self.name} has no form for {len(request.follow_ups) + 1} turns "
                f"{'with' if request.reference else 'without'} a reference; choose another judge_template"
            )
        return form

    def messages(self, request: JudgeRequest) -> list[dict[str, str]]:
        """The turns that a judge is sent.

        Raises:
            DataError: no form fits the request, or a content names what the request does not have.
        """
        form, names = self.form(request), names_of(request)
        return [{**turn, "content": _rendered(self.name, turn["content"], names)} for turn in form.messages]

    def check(self, request: JudgeRequest) -> None:
        """Refuse a question before anyone has answered it: what a content reads out of an answer may come yet.

        Args:
            request: with any answers.

        Raises:
            DataError: no form fits the request, or a content needs a name that it does not have.
        """
        form, names = self.form(request), names_of(request)
        if any(_undeclared(turn["content"]) - set(names) for turn in form.messages):
            self.messages(request)  # whether it is needed: a content may ask whether a name is there

    def read(self, reply: Reply) -> Judgement:
        """What a reply says."""
        if isinstance(self.reading, Letters):
            return self.reading.read(reply, self.num_answers)
        return self.reading.read(reply)


def letters_of(template: Template) -> Letters:
    """The letters by which a template is read.

    Raises:
        ConfigError: it is read otherwise.
    """
    if isinstance(template.reading, Letters):
        return template.reading
    raise ConfigError(
        f"judge_template={template.name} is read from what a judge writes, and a local model writes nothing: "
        "choose a template of letters, such as letters or alpaca_eval"
    )


def names_of(request: JudgeRequest) -> dict[str, Any]:
    """What a template may name, by the names that the benchmarks use.

    `question` (`instruction`), `answer` or `answer_a` and `answer_b` (`output_1`, `output_2`) of one turn; with a
    number behind, from 1, of that turn: `question_2`, `answer_2`, `answer_a_2`; `ref_answer_1` and so on; `row`.
    """
    questions = [prompt_text(list(request.prompt)), *request.follow_ups]
    names: dict[str, Any] = {"row": request.row or {}}
    columns = ("answer",) if len(request.answers) == 1 else ("answer_a", "answer_b")
    named = {"question": questions, **dict(zip(columns, request.answers, strict=True))}
    for name, texts in {**named, "ref_answer": request.reference or ()}.items():
        names |= {f"{name}_{turn}": text for turn, text in enumerate(texts, start=1)}
    names |= {name: texts[0] for name, texts in named.items()}
    names |= {"instruction": questions[0]}
    names |= {f"output_{number}": texts[0] for number, texts in enumerate(request.answers, start=1)}
    return names


def load_template(name_or_path: str) -> Template:
    """A template by its name, or a user's own: a YAML file with the fields of `Template`.

    Raises:
        ConfigError: no such name; a file that is no template, or a content that is no Jinja template.
        MissingFileError: a path that is not there.
    """
    path = WORDING / f"{name_or_path}.yaml" if name_or_path in TEMPLATES else Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"judge_template={name_or_path!r} does not exist; choose one of: {', '.join(TEMPLATES)}, or a YAML file"
        )
    try:
        template = from_json(Template, load_mapping(str(path), f"judge_template={name_or_path}"))
        for turn in (turn for form in template.forms for turn in form.messages):
            _compiled(turn["content"])
    except DataError as error:
        raise ConfigError(f"judge_template={name_or_path}: {error}") from None
    except KeyError:
        raise ConfigError(f"judge_template={name_or_path}: a message has no content; give role and content") from None
    return template


def _rendered(template: str, content: str, names: Mapping[str, Any]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(_compiled(content).render(names))
    except TemplateError as error:
        raise DataError(f"judge template {template}: {error.message}; there are {', '.join(sorted(names))}") from None
    except Exception as error:  # whatever its expressions raise: they may divide by zero, or add a text to a number
        raise DataError(f"judge template {template}: {type(error).__name__}: {short(str(error))}") from None


def _undeclared(content: str) -> set[str]:
    """The names that a Jinja template takes from outside."""
    from jinja2.meta import find_undeclared_variables

    environment = _environment()
    return find_undeclared_variables(environment.parse(content)) - set(environment.globals)


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def _compiled(content: str) -> Any:
    """The Jinja template of a text, which reaches nothing but its names.

    Raises:
        DataError: it is none.
    """
    from jinja2.exceptions import TemplateSyntaxError

    try:
        return _environment().from_string(content)
    except TemplateSyntaxError as error:
        raise DataError(f"a message is no Jinja template (its line {error.lineno}: {error.message})") from None
