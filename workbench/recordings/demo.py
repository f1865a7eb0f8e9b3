"""The first recording, of the app and of `workbench demo`: the bundled model over the bundled corpus."""

from workbench.recordings.fields import FIELDS

DEMO_MODEL, DEMO_PARENT = "tiny-moe", "tiny-dense@parent"
DEMO_FIELDS = tuple(field for field in FIELDS if field != "logits")
"""Everything but the logits."""
