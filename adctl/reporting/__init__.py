"""Reports: a scored set as HTML, Markdown, JSON, CSV, PDF or slides, and comparisons of several scored sets."""
