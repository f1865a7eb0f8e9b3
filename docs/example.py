"""Makes `docs/example.md`, what the experts of the bundled model do, with every number and figure from a run.

    python -m docs.example [--out docs]

Records tiny-moe, and the same model before training, over the bundled corpus into a temporary folder, asks the
analyses, and writes the story that `docs.story` tells of them. Recordings that were made before are taken with
--recording and --untrained. Where the run does not bear a sentence out, nothing is written, and it is named.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from docs.story import Story
from workbench.capture.record import record
from workbench.figures.matplotlib import draw
from workbench.models import bundled
from workbench.models.loading import load
from workbench.recordings import demo
from workbench.recordings.recording import Recording

MODEL, UNTRAINED = demo.DEMO_MODEL, f"{demo.DEMO_MODEL}@{bundled.revisions(demo.DEMO_MODEL)[0]}"


def main() -> None:
    """Writes the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--recording", type=Path, help="of the model, made before")
    parser.add_argument("--untrained", type=Path, help="of the model before training, made before")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained, untrained = arguments.recording, arguments.untrained
        if trained is None or untrained is None:
            trained, untrained = _record(Path(folder))
        story = Story.of(Recording.open(trained), Recording.open(untrained))
        write(story, arguments.out)


def _record(folder: Path) -> tuple[Path, Path]:
    parent = load(demo.DEMO_PARENT, device="cpu")
    model, before = load(MODEL, device="cpu"), load(UNTRAINED, device="cpu")
    trained = record(model, "demo", folder / "trained", fields=demo.DEMO_FIELDS, parent=parent)
    return trained.path, record(before, "demo", folder / "untrained").path


def write(story: Story, out: Path) -> None:
    """Writes `example.md` and its figures, at a paper's column width.

    Raises:
        SystemExit: the run does not bear the story out.
    """
    if story.doubts:
        sys.exit(f"the story says, and this run does not: {'; '.join(story.doubts)}. Write docs/story.py anew.")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in story.figures.items():
        with (out / "figures" / f"example_{name}.png").open("wb") as file:
            draw.save(draw.paper(figure), file, kind="png", metadata={"Title": figure.title})
    (out / "example.md").write_text(story.text, encoding="utf-8")


if __name__ == "__main__":
    main()
