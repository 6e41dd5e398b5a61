"""The line: parts of several sources, in the order of their triggers, with one verdict each, on their way to sinks."""
