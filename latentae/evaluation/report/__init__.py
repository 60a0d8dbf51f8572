"""The results of an evaluation: as JSON, as a table, as Markdown, as a page."""
