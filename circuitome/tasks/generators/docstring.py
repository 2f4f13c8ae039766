"""Docstring completion."""

from random import Random

from circuitome.tasks.generators.words import ARGUMENTS, NOUNS
from circuitome.tasks.sampling import Template, draw_task, one_token_words
from circuitome.tasks.task import Pair, Task, Tokens

TEMPLATE = Template(
    "docstring",
    "def {_name}(self, {X1}, {X2}, {A_def}, {B_def}, {C_def}, {Y}):\n"
    '    """Reads {_w0} {_w1} {_w2}\n'
    "\n"
    "    :param {A_doc}: {_w3} {_w4}\n"
    "    :param {B_doc}: {_w5} {_w6}\n"
    "    :param",
)
ARGUMENT_SLOTS = ("X1", "X2", "A_def", "B_def", "C_def", "Y")


def docstring(model: Tokens, n: int = 64, seed: int = 0) -> Task:
    """A Python docstring describes the arguments in their order: the next one must be named.

    clean      def load(self, size, mode, file, color, index, rate): ... :param file: ... :param color: ... :param
               -> " index", not another argument
    corrupted  the same docstring under  def load(self, year, port, token, host, batch, label):

    Corrupted: all six argument names in the def are other ones. Roles: X1, X2 (arguments that the docstring skips),
    A_def, B_def, C_def, Y (the one behind), A_doc, B_doc, end.
    Metric: logit_diff_max, logit of C minus the largest logit of the other five arguments of the clean def, in logits.
    Raises `TaskError` where the tokenizer has too few words.
    Source: Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer"; they
    replace the names in the docstring as well.

    >>> model = cm.load("smollm2-135m")
    >>> cm.tasks.docstring(model, n=2).pairs[0].clean_text.splitlines()[0]
    'def stream(self, cache, column, last, package, item, index):'
    """
    names = one_token_words(model, ARGUMENTS, "argument names", 13)
    fillers = one_token_words(model, [word for word in NOUNS if word not in ARGUMENTS], "nouns", 7)

    def draw(rng: Random, index: int) -> Pair:
        drawn = rng.sample(names, 13)
        clean = dict(zip(ARGUMENT_SLOTS, drawn[:6], strict=True))
        corrupted = dict(zip(ARGUMENT_SLOTS, drawn[6:12], strict=True))
        rest = {f"_w{i}": word for i, word in enumerate(rng.sample(fillers, 7))}
        rest |= {"_name": drawn[12], "A_doc": clean["A_def"], "B_doc": clean["B_def"]}
        return TEMPLATE.pair(
            model,
            clean | rest,
            corrupted,
            answers=[" " + clean["C_def"]],
            wrongs=[" " + word for slot, word in clean.items() if slot != "C_def"],
        )

    return draw_task("docstring", n, seed, draw, "logit_diff_max")
