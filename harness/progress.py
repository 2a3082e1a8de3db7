"""What a run shows as it goes: bars on a terminal, plain lines in a log, TensorBoard's scalars."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from tqdm import tqdm

from harness.records import Run, Show

LINE_INTERVAL_S = 10.0


class PlainLines(tqdm):
    """A tqdm that writes a whole line at a time, for output that is not a terminal."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write the state as one line; tqdm calls this at most every `mininterval` seconds."""
        del pos
        print(msg or str(self), file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """Stop without the empty line that a bar leaves."""
        self.disable = True


def progress_bar(description: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A bar over `total` units with rate and remaining time, on standard error.

    `done` units are there already and do not count for the rate. Where standard error is no
    terminal it becomes a plain line every 10 seconds.
    """
    if sys.stderr.isatty():
        kind, how = tqdm, {"dynamic_ncols": True}
    else:
        kind, how = PlainLines, {"mininterval": LINE_INTERVAL_S, "ncols": 100}
    of = {"desc": description, "total": total, "initial": done, "unit": unit}
    return kind(**of, **how, unit_scale=True, leave=False)


@contextmanager
def tensorboard(folder: Path, run: Run) -> Iterator[Show]:
    """A place for a run's values, in a folder of its own below `folder`.

    Written by TensorBoard itself, without a framework. Raises: OSError, ModuleNotFoundError.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with closing(EventFileWriter(str(folder / run.record.stem))) as writer:

        def show(step: int, values: Mapping[str, float]) -> None:
            scalars = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
            # The one use of the time of day: TensorBoard's axis 'wall'. Nothing is decided by it.
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
            writer.add_event(event)
            writer.flush()

        yield show
