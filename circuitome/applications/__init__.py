"""Circuits used: smaller models, distilled ones, chosen data; each gives an ordinary checkpoint."""
