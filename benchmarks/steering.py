"""Directions in SmolLM2-135M between a few texts each: how often steered texts are as wanted, at what price.

Beside each stand random directions of the same norm; a text is as wanted where a word in it begins as one of the list.
"""

import argparse
import json
import re
import time
from dataclasses import asdict, dataclass
from datetime import date

import torch
from speed import HERE, machine, one_thread

import circuitome as cm

STRENGTHS = (-0.4, -0.2, 0.0, 0.1, 0.2, 0.3, 0.4)
NEUTRAL_WORDS = 1_500


@dataclass(frozen=True)
class Subject:
    """Texts on both sides, a prompt, and how words of wanted texts begin."""

    toward: tuple[str, ...]
    away: tuple[str, ...]
    prompt: str
    wanted: tuple[str, ...]


SUBJECTS = {
    "praise": Subject(
        (
            "I love this so much, it is wonderful",
            "What a fantastic and joyful day we had",
            "This is the best gift ever, I am so happy",
            "Everyone smiled and laughed, it was great",
            "The food was delicious and the people were kind",
        ),
        (
            "I hate this so much, it is terrible",
            "What a horrible and miserable day we had",
            "This is the worst gift ever, I am so sad",
            "Everyone cried and shouted, it was awful",
            "The food was disgusting and the people were rude",
        ),
        "I went to the new restaurant yesterday and",
        ("love", "great", "happy", "wonderful", "beautiful", "good", "best", "enjoy", "excit", "amazing", "delicious"),
    ),
    "sea": Subject(
        (
            "The waves rolled over the beach and the ships sailed across the ocean",
            "Sailors steered their boat through the harbour to the open sea",
            "Fish and whales swim in the deep blue water",
            "The captain looked at the coast from the deck of the ship",
        ),
        (
            "The teacher wrote on the blackboard and the pupils opened their books",
            "Workers drove their truck through the town to the factory",
            "Lawyers and clerks work in the tall grey office",
            "The doctor looked at the patient from the door of the room",
        ),
        "My grandfather told me a story about",
        ("sea", "ocean", "ship", "boat", "sail", "beach", "water", "wave", "fish", "island", "coast", "captain"),
    ),
    "money": Subject(
        (
            "The bank raised its interest rates and the stock market fell",
            "Investors bought shares and the company paid a dividend",
            "She counted the dollars and paid the price in cash",
            "The budget shows how much income and tax there is",
        ),
        (
            "The garden had red flowers and the birds sang in the trees",
            "Children played football and their friends ran in the park",
            "She counted the stars and walked along the river in silence",
            "The picture shows how green the hills and fields are",
        ),
        "The most important thing in life is",
        ("money", "dollar", "bank", "invest", "pay", "paid", "price", "financ", "cost", "income", "tax", "market"),
    ),
    "question": Subject(
        (
            "Where are you going? When will you be back? Who is with you?",
            "What is this? Why is it here? How does it work?",
            "Do you like it? Would you buy it? Is it expensive?",
        ),
        (
            "I am going home. I will be back soon. My friend is with me.",
            "This is a machine. It is here to help. It works with steam.",
            "I like it. I would buy it. It is expensive.",
        ),
        "Yesterday I met my neighbour.",
        ("what", "why", "how", "who", "where", "when", "do you", "are you", "is it"),
    ),
    "past": Subject(
        (
            "He walked home, opened the door and sat down",
            "They were tired because they had worked all day",
            "She sang a song and everybody listened",
        ),
        (
            "He will walk home, open the door and sit down",
            "They will be tired because they will work all day",
            "She will sing a song and everybody will listen",
        ),
        "The king and his daughter",
        ("was", "were", "had", "went", "came", "said", "took", "made", "lived"),
    ),
    "winter": Subject(
        (
            "Snow fell all night and ice covered the frozen lake",
            "It was a cold winter and everyone wore warm coats",
            "The frost was white and the wind was freezing",
        ),
        (
            "Sun shone all day and light covered the sandy lake",
            "It was a hot summer and everyone wore thin shirts",
            "The sand was yellow and the air was burning",
        ),
        "We looked out of the window and saw",
        ("snow", "ice", "cold", "winter", "freez", "frost", "frozen", "coat", "chill"),
    ),
}


def device_name(model: cm.Model) -> str:
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS))
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--device", help="cuda, for example; the processor by default")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m", device=options.device)
    path = HERE / "results" / f"steering-{date.today()}.json"
    result = json.loads(path.read_text()) if options.write and path.is_file() else {}
    result = {"machine": machine(), **result, "layer": options.layer, "samples": options.samples}
    neutral = " ".join(cm.heads.own_text().split()[:NEUTRAL_WORDS])
    for name in options.subjects:
        subject, start = SUBJECTS[name], time.process_time()
        direction = cm.direction(model, subject.toward, subject.away, layer=options.layer, tokens="all")
        words = re.compile("|".join(rf"\b{word}" for word in subject.wanted), re.IGNORECASE)
        steering = cm.steer(
            model,
            direction,
            subject.prompt,
            lambda text, words=words: words.search(text) is not None,
            strengths=STRENGTHS,
            neutral=neutral,
            samples=options.samples,
        )
        result[name] = {
            "separation": direction.separation,
            "seconds": time.process_time() - start,
            "device": device_name(model),
            "rows": [asdict(row) | {"texts": row.texts[:2]} for row in steering.rows],
        }
        for row in steering.rows:
            print(name, row.what, row.strength, row.wanted, row.loss, row.p, flush=True)
        if options.write:
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
