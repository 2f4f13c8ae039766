"""One file a study: settings that are the command, the run, and what it found as blocks."""
