"""Recordings from traces that other tools made: what a source lacks is absent in the recording, never filled in.

`build.import_trace` is the way in. Each format has a reader of its own that gives documents of ids (or counts) as the
source has them; `checks` refuses what cannot be meant; `layout` says which decoder layer each of the source's columns
is. Nothing here proves that the trace is right: the manifest says so.
"""
