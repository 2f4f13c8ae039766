"""The JSON schema of a run's manifest: what a program may rely on when it reads one."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field
from pydantic.json_schema import GenerateJsonSchema

from circuitome.present.blocks import AnyBlock
from circuitome.studies.catalog import NAMES

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Described(BaseModel):
    """A part of a manifest; its docstrings are the schema's descriptions. Entries that it does not name are allowed."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Versions(Described):
    """Versions of what the run was made with."""

    python: str
    """Python."""
    torch: str
    """PyTorch."""
    transformers: str
    """Hugging Face transformers."""


class ModelFacts(Described):
    """The model that ran."""

    name: str
    """The name, folder or file by which it was asked for."""
    architecture: str
    """Its `model_type` in Hugging Face's configuration."""
    layers: int
    """Number of blocks."""
    heads: int
    """Query heads in a block."""
    kv_heads: int
    """Key/value heads in a block; fewer than query heads under grouped-query attention."""
    d_model: int
    """Width of the residual stream."""
    parallel: bool
    """Whether attention and MLP of a block read the same stream (GPT-NeoX)."""
    parameters: int
    """Number of weights."""
    weights_hash: str
    """Hash of all weights: another one means another model."""
    dtype: str
    """Number format of the weights, e.g. float32."""
    device: str
    """Where it ran."""
    attention: str
    """Which of Hugging Face's implementations of attention ran."""
    tokens_added_by_tokenizer: str
    """What the tokenizer puts in front of every text, or none."""


class TaskFacts(Described):
    """The prompt pairs and their metric."""

    name: str
    """The task's name."""
    n: int
    """Number of prompt pairs."""
    seed: int | None
    """Seed that they were drawn with; null for pairs of one's own."""
    source: str
    """Where they come from: a generator, a file, memory."""
    unit: str
    """Unit of the metric, e.g. logits."""
    metric: str
    """Name of the metric."""
    data_hash: str
    """Hash of all pairs with their metric."""


class PromptFacts(Described):
    """A prompt pair, as a reader sees it."""

    clean: str
    """The clean prompt."""
    corrupted: str
    """The corrupted prompt."""
    answers: list[str]
    """Right answers, at most ten."""
    wrongs: list[str]
    """Wrong answers, at most ten."""


class OriginFacts(Described):
    """From what the prompts can be drawn again."""

    task: str
    """Name of the generator, or of the task that a file holds."""
    model: str
    """Name, folder or file of the model."""
    n: int
    """Number of prompt pairs that are drawn."""
    seed: int
    """Seed that they are drawn with."""
    data: str | None
    """File of prompt pairs in place of a generator."""
    metric: str | None = None
    """Metric in place of the task's own."""


class RunFacts(Described):
    """The run that this run is about."""

    folder: str
    """Where it lay."""
    key: str
    """Its key."""
    command: str
    """The command line that repeats it."""


class Manifest(Described):
    """manifest.json of a run of circuitome."""

    kind: Annotated[str, Field(json_schema_extra={"enum": list(NAMES)})]
    """The study that made it, which is also its command."""
    key: str
    """16 hexadecimal digits that command, data and weights decide together: equal keys, equal runs."""
    circuitome: str
    """Version of circuitome."""
    created: str
    """When it was made, in UTC, as ISO 8601."""
    command: str
    """The command line that repeats it."""
    versions: Versions
    """Versions of Python, torch and transformers."""
    peak_memory_bytes: int
    """Largest resident size of the process until the run was saved."""
    title: str
    """What was asked, in a line."""
    sign: str
    """What signs and intervals mean, in a sentence or two."""
    seed: int
    """Seed of everything that was drawn."""
    settings: dict[str, Any]
    """Every option of the command by its name, defaults included."""
    results: dict[str, Any]
    """The study's numbers. An estimate is an object with value, low, high, unit, n, level and templates."""
    blocks: list[Annotated[AnyBlock, Discriminator("block")]]
    """What terminal, page and notebook show, in their order; the field `block` of each says what kind it is."""
    seconds: float
    """How long it took."""
    model: ModelFacts | None = None
    """The model; absent from runs that load none, such as diff."""
    task: TaskFacts | None = None
    """The prompts; absent from runs that draw none."""
    prompts: list[PromptFacts] | None = None
    """The first prompt pairs of runs that draw some."""
    ablation: str | None = None
    """What edges outside the circuit carry, in runs over prompts: corrupted, zero, mean, mean-position or by-role."""
    prompts_from: OriginFacts | None = None
    """From what the prompts can be drawn again."""
    run: RunFacts | None = None
    """In runs about another run: which."""
    method: dict[str, Any] | None = None
    """In find: the method, its arguments, and the unit of its scores."""
    edges: int | None = None
    """Edges of the circuit, in runs that hold one."""


class Untitled(GenerateJsonSchema):
    """Leaves out titles, which only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


def schema() -> dict[str, Any]:
    """The schema as plain JSON values."""
    return {"$schema": DIALECT, **Manifest.model_json_schema(schema_generator=Untitled)}
