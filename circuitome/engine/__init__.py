"""Running a model with something replaced: batches, ablations, circuit runs, knock-outs, frozen paths."""
