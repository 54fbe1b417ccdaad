"""What every report has: a record, tables, sentences, the page."""
