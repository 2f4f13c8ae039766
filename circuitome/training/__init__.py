"""Training of models, watched from the inside: one loop for models from scratch, initialised, distilled, fine-tuned.

stream = cm.training.text_stream(model, texts)                          # or a function of (step, generator)
schedule = cm.training.Schedule(steps=1000, batch=32, length=256)
training = cm.training.train(model, stream, schedule, folder="runs/a")  # killed and called again: the same bytes
steps, losses = training.curve("loss")
"""

from circuitome.training.fresh import untrained, vocabulary
from circuitome.training.loop import Training, train
from circuitome.training.objectives import masked_token, mean_loss, next_token
from circuitome.training.schedule import Schedule, log_steps
from circuitome.training.streams import (
    DrawnStream,
    MaskedStream,
    MixedStream,
    RepeatedStream,
    Rows,
    TextStream,
    text_stream,
)

__all__ = [
    "DrawnStream",
    "MaskedStream",
    "MixedStream",
    "RepeatedStream",
    "Schedule",
    "TextStream",
    "Rows",
    "Training",
    "log_steps",
    "masked_token",
    "mean_loss",
    "next_token",
    "text_stream",
    "train",
    "untrained",
    "vocabulary",
]
