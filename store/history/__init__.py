"""The history on disk: writer, live file, segments, schema, catalog."""
