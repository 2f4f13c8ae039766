"""The test suite's run-time type checker: beartype, taking an int for a float as type checkers do."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
